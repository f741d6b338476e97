"""`genre-dist doctor`: checks everything that a run needs on this machine, or under torchrun on all machines."""

import json
import os
import socket
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genre_dist.doctor import gpus, machine, software
from genre_dist.doctor.finding import Finding
from genre_dist.parallel.processes import with_launcher
from genre_dist.parallel.world import World, start_world, stop_world
from genre_dist.printable import printable

MEGABYTES = 64
SLOW = 1e9
"""Bytes a second below which the exchange of gradients between GPUs dominates a step (ResNet152: 240 MB in fp32)."""
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}


@with_launcher()
def examine(shards: Path, runs: Path, as_json: bool = False) -> int:
    """Check, print a table (or JSON) on rank 0; returns 1 if any machine has a problem, else 0.

    Raises OSError if torchrun's ranks do not find each other. If a rank's GPU is unusable they do not join: rank 0 of
    every machine prints that machine's findings.
    """
    try:
        world = start_world(timeout_seconds=120)
    except ValueError:  # the findings below name the GPU and the reason
        world = World(int(os.environ.get("RANK", "0")), 1, torch.device("cpu"))
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", os.environ.get("SLURM_JOB_NUM_NODES", "1")))
    # all ranks of a machine would find the same
    leads = os.environ.get("LOCAL_RANK", "0") == "0"
    findings = _look(shards, runs, world, nodes) if leads else []
    bandwidth = _bandwidth(world)
    if world.is_first:
        findings.append(bandwidth)
    gathered = world.gather((socket.gethostname(), findings))
    wrong = world.any(any(finding.status == "wrong" for finding in findings))
    if gathered is not None and leads:
        rows = [(host, finding) for host, findings in gathered for finding in findings]
        _print_json(rows, not wrong) if as_json else _print_table(rows, nodes)
    stop_world(world)
    return int(wrong)


def _look(shards: Path, runs: Path, world: World, nodes: int) -> list[Finding]:
    return [
        software.check_python(),
        software.check_torch(),
        software.check_cuda(),
        *gpus.check_gpus(),
        software.check_nccl(),
        software.check_deepspeed(),
        software.check_decoders(),
        machine.check_disk(runs),
        machine.check_shm(ranks=world.size),
        machine.check_open_files(),
        machine.check_network(nodes),
        machine.check_slurm(),
        machine.check_shards(shards),
        machine.check_weights(),
    ]


def _bandwidth(world: World) -> Finding:
    """All-reduce of 64 MB of fp32: bytes a rank sends, 2 (W - 1) / W of the buffer, over the best time of five."""
    if world.size == 1:
        return Finding("all-reduce", "ok", "one rank; to measure: torchrun --nproc_per_node=N -m genre_dist.cli doctor")
    buffer = torch.zeros(MEGABYTES * 2**20 // 4, device=world.device)
    best = float("inf")
    for _ in range(6):  # the first pass opens the connections
        world.barrier()
        began = time.perf_counter()
        world.sum(buffer)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        best = min(best, time.perf_counter() - began)
    sent = 2 * (world.size - 1) / world.size * buffer.nbytes / best
    message = f"{world.size} ranks, {MEGABYTES} MB: {sent / 1e9:.2f} GB/s a rank"
    if world.device.type == "cuda" and sent < SLOW:
        return Finding("all-reduce", "note", message, "slow: NCCL_DEBUG=INFO tells which network NCCL chose")
    return Finding("all-reduce", "ok", message)


def _print_table(rows: list[tuple[str, Finding]], nodes: int) -> None:
    console = Console()
    table = Table(*(["machine"] if nodes > 1 else []), "what", "", "found", show_edge=False)
    for host, finding in rows:
        message, fix = escape(printable(finding.told)), escape(printable(finding.fix))
        message += f"\n[bold]-> {fix}[/]" if fix else ""
        table.add_row(*([escape(host)] if nodes > 1 else []), finding.name, MARKS[finding.status], message)
    console.print(table)
    count = sum(finding.status == "wrong" for _, finding in rows)
    console.print(f"[red]{count} to mend[/]" if count else "[green]fit for training[/]")


def _print_json(rows: list[tuple[str, Finding]], fit: bool) -> None:
    print(json.dumps({"fit": fit, "findings": [{"machine": host} | row._asdict() for host, row in rows]}, indent=1))
