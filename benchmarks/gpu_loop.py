"""Sections of gpu.py about the training loop as users run it: its speed, feeding, checkpoints and back-off."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Row
from gpu_bench import Bench
from gpu_measure import make_step

from genre_dist.config import CheckpointConfig, Config, TrackingConfig
from genre_dist.parallel.world import World
from genre_dist.planner.planned_model import find_vocabulary
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import device_feed
from genre_dist.stream.loader import TrainStream
from genre_dist.stream.reader import ShardReader
from genre_dist.training.backoff import NOTE
from genre_dist.training.trainer import Trainer

GOAL_RATE, GOAL_WAIT, GOAL_STALL = 1800, 0.02, 1.0
TrainRows = list[dict[str, Any]]


def loop_config(bench: Bench, config: Config, steps: int, batch: int) -> Config:
    """A run over the packed shards as users start one, but for W&B, evaluations and checkpoints on the way."""
    shards = str(bench.manifest().folder)
    data = {"shards": shards, "global_batch": batch, "micro_batch": "auto", "last_batch": "drop"}
    return replace(
        config,
        data=replace(config.data, **data),
        train=replace(config.train, steps=steps, eval_every_steps=10**6),
        checkpoint=CheckpointConfig(every_steps=None),
        tracking=TrackingConfig(wandb="off", films=0),
    )


class Unevaluated(Trainer):
    """Trains, and leaves the model out."""

    def finish(self) -> None: ...


def train(config: Config, world: World, folder: Path) -> TrainRows:
    """Train in a folder, evaluating nothing; returns the record's rows of steps. Raises RuntimeError if it stops."""
    code = Unevaluated(replace(config, run=replace(config.run, dir=str(folder))), world).fit()
    if code:
        raise RuntimeError(f"the training ended with code {code}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def loop(bench: Bench) -> Iterator[Row]:
    """The real loop against the same model on one of its batches again and again."""
    yield from real_loop(bench)


def real_loop(bench: Bench, compile: bool = False, cuda_graph: bool = False) -> Iterator[Row]:
    steps, batch = (4, 8) if bench.quick else (60, 128)
    config = loop_config(bench, bench.config(compile=compile, cuda_graph=cuda_graph), steps, batch)
    with tempfile.TemporaryDirectory(dir=bench.work) as folder:
        rows = train(config, bench.world, Path(folder, "run"))[steps // 3 :]  # the first ones warm up
    seconds = sum(row["step_seconds"] for row in rows)
    speed = sum(row["samples"] for row in rows) / seconds
    wait, mfu = (sum(row[name] * row["step_seconds"] for row in rows) / seconds for name in ("data_wait", "mfu"))
    what = f"real loop{', blocks compiled' * compile}{', CUDA graphs' * cuda_graph}"
    yield Row(
        claim=f"{what}: crops, real lengths, back-off and records, {bench.precision}, batch {batch}",
        value=speed,
        unit="samples/s",
        goal=f">= {GOAL_RATE} on one H100" if bench.on_gpu else "",
        holds=speed >= GOAL_RATE if bench.is_h100 else None,
    )
    yield _waiting(bench, f"{what}: waiting for data", wait)
    if mfu:  # 0 where the peak is unknown
        yield Row(claim=f"{what}: MFU", value=mfu, unit="share of the peak")
    yield Row(claim=f"{what}: peak memory", value=rows[-1]["memory_bytes"] / 2**30, unit="GiB")
    if not (compile or cuda_graph):
        bench.free()
        alone = model_alone(bench, config, one_batch(bench, config))
        yield Row(claim="the model alone on one of the loop's batches", value=alone, unit="samples/s")
        yield Row(claim="real loop over the model alone", value=speed / alone, unit="share")


def _waiting(bench: Bench, claim: str, share: float) -> Row:
    goal = f"<= {GOAL_WAIT:.0%}" if bench.on_gpu else ""
    return Row(
        claim=claim,
        value=share,
        unit="share of the time",
        goal=goal,
        holds=share <= GOAL_WAIT if goal else None,
    )


def stream(bench: Bench, config: Config, workers: int) -> TrainStream:
    """The training batches of a configuration in one micro-batch each."""
    feed = device_feed(bench.device, "cpu")
    manifest = bench.manifest()
    reader = ShardReader(manifest, "train", config.model.members(manifest.declared), config.data.max_tokens)
    size = config.data.global_batch
    return TrainStream(
        reader, global_batch=size, micro_batch=size, seed=0, workers=workers, last_batch="drop", feed=feed
    )


def one_batch(bench: Bench, config: Config) -> Batch:
    with closing(stream(bench, config, workers=0).batches()) as batches:
        return bench.pinned(next(batches)[0])


def model_alone(bench: Bench, config: Config, batch: Batch) -> float:
    """Samples per second of a step on a batch that is there."""
    step = make_step(config, find_vocabulary(config), "none", bench.precision, bench.world)
    return bench.rate(lambda: step([batch]), len(batch.ids)).value


def feeding(bench: Bench) -> Iterator[Row]:
    """Loader alone, model alone, both together, and how long the model waits for data."""
    batch, rounds = (8, 3) if bench.quick else (128, 40)
    workers = 1 if bench.quick else max(2, min(16, bench.cores - 1))
    config = loop_config(bench, bench.config(), rounds, batch)
    with closing(stream(bench, config, workers).batches()) as batches:
        next(batches)
        began = time.perf_counter()
        for _ in range(rounds):
            next(batches)
        loader = rounds * batch / (time.perf_counter() - began)
        yield Row(claim=f"loader alone, {workers} workers", value=loader, unit="samples/s")
        step = make_step(config, find_vocabulary(config), "none", bench.precision, bench.world)
        held = one_batch(bench, config)
        alone = bench.rate(lambda: step([held]), batch).value
        yield Row(claim=f"model alone, one batch again and again, batch {batch}", value=alone, unit="samples/s")
        waited, began = 0.0, time.perf_counter()
        for _ in range(rounds):
            asked = time.perf_counter()
            micro_batches = next(batches)
            waited += time.perf_counter() - asked
            step(micro_batches)
        bench.synchronise()
        seconds = time.perf_counter() - began
    yield Row(claim="both together", value=rounds * batch / seconds, unit="samples/s")
    yield _waiting(bench, "both together: waiting for data", waited / seconds)


def checkpoint(bench: Bench) -> Iterator[Row]:
    """Too little memory for the batch, and a checkpoint on the way: both in one run, in a process of its own."""
    steps, batch = (4, 8) if bench.quick else (40, 128)
    saved = steps * 3 // 4
    config = loop_config(bench, bench.config(), steps, batch)
    config = replace(config, checkpoint=CheckpointConfig(every_steps=saved))
    if bench.on_gpu:
        whole = torch.cuda.get_device_properties(bench.device).total_memory
        # enough for the model, AdamW's states and 32 samples by the planner's count; 128 samples need 14 GB
        torch.cuda.set_per_process_memory_fraction(8 * 2**30 / whole, bench.device)
    with tempfile.TemporaryDirectory(dir=bench.work) as name:
        folder = Path(name, "run")
        rows = train(config, bench.world, folder)
        piece = int((folder / NOTE).read_text()) if (folder / NOTE).is_file() else batch
    stall = next(row["checkpoint_seconds"] for row in rows if row["step"] == saved + 1)
    yield Row(
        claim="training stands still for a checkpoint",
        value=stall,
        unit="s",
        goal=f"< {GOAL_STALL:g} s" if bench.on_gpu else "",
        holds=stall < GOAL_STALL if bench.on_gpu else None,
    )
    if bench.on_gpu:
        yield Row(
            claim=f"out of memory, forced with 8 GiB: batches of {batch} went on in pieces of",
            value=piece,
            unit="samples",
            goal=f"< {batch}, all {steps} steps done",
            holds=piece < batch and rows[-1]["step"] == steps,
        )
    else:
        yield Row(claim="out of memory, forced", value=float("nan"), unit="needs CUDA")
