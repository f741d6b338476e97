"""A section of gpu.py: two ranks that share one GPU, over gloo, each a process of its own."""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from common import Row
from gpu_bench import Bench
from gpu_checks import losses, off_by, small_run
from gpu_measure import make_step
from gpu_worker import Options, child_command

from genre_dist.config import ParallelConfig
from genre_dist.parallel.world import start_world, stop_world
from genre_dist.planner.throughput import peak_memory_bytes

RANKS = 2


def ranks(bench: Bench) -> Iterator[Row]:
    """ddp and fsdp on two ranks: their losses against one process, and the memory of a rank."""
    expected = losses(bench, [small_run(bench)], bench.world)
    bench.free()
    for strategy in ("ddp",) if bench.quick else ("ddp", "fsdp"):
        found, peaks = run_ranks(bench, strategy)
        yield off_by(f"{strategy} on {RANKS} ranks", expected, found)
        yield Row(claim=f"{strategy} on {RANKS} ranks: peak memory a rank", value=max(peaks) / 2**30, unit="GiB")


def run_ranks(bench: Bench, strategy: str) -> tuple[list[float], list[float]]:
    """Losses, and the peak memory of each rank in bytes. Raises RuntimeError if a rank fails."""
    prepared = bench.manifest().folder.parent
    with tempfile.TemporaryDirectory(dir=bench.work) as name:
        options = {"strategy": strategy, "quick": bench.quick, "work": name, "prepared": str(prepared)}
        command = [*child_command(), "--rank", json.dumps(options)]
        variables = {
            "WORLD_SIZE": RANKS,
            "LOCAL_WORLD_SIZE": RANKS,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": _free_port(),
        }
        variables |= {"OMP_NUM_THREADS": 1}
        running = []
        for rank in range(RANKS):
            own = {key: str(value) for key, value in (variables | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            running.append(subprocess.Popen(command, env=os.environ | own))
        try:
            while any(process.poll() is None for process in running) and not any(p.returncode for p in running):
                time.sleep(0.05)
        finally:  # a rank does not outlive one that failed
            for process in running:
                process.kill()
        if codes := [process.wait() for process in running if process.returncode]:
            raise RuntimeError(f"{strategy}: a rank ended with code {codes[0]}, the log has its words")
        reports = [json.loads(Path(name, f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    return reports[0]["losses"], [report["peak"] for report in reports]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def one_rank(arguments: str) -> None:
    """A rank of `run_ranks`: the losses of the small run, then the peak of three steps of the study's model."""
    options = json.loads(arguments)
    work, strategy = Path(options["work"]), options["strategy"]
    world = start_world()
    bench = Bench(Options(options["quick"], work, Path(options["prepared"]), work / "rank"))
    spread = ParallelConfig(strategy=strategy)
    found = losses(bench, [replace(small_run(bench), parallel=spread)], world, work / "run")
    bench.free()
    config, micro = bench.config(), 2 if bench.quick else 16
    data = replace(config.data, global_batch=RANKS * micro, micro_batch=micro)
    step = make_step(replace(config, data=data, parallel=spread), bench.words, "none", bench.precision, world)
    for _ in range(1 if bench.quick else 3):
        step([bench.batch(config, micro)])
    report = {"losses": found, "peak": peak_memory_bytes(world.device)}
    (work / f"rank-{world.rank}.json").write_text(json.dumps(report))
    stop_world(world)
