"""Sections of gpu.py: how fast a step is in each way of training, what it uses and what the planner said."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from common import Row
from gpu_bench import Bench, Rate, tf32
from gpu_measure import make_step

from genre_dist.config import Config
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.heads import Heads
from genre_dist.planner.memory import Checkpointing, Precision
from genre_dist.planner.throughput import peak_flops
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import FieldInput
from genre_dist.stream.images import whole
from genre_dist.training.experiment import autocast_for
from genre_dist.training.loss import loss_sum
from genre_dist.training.optimizer import make_optimizer

GOAL_PLAN = 0.10
QUICK_BATCH = 2


@dataclass(frozen=True)
class Case:
    """One way to train."""

    micro: int
    frozen: bool = False
    cached: bool = False
    """Frozen, and encoded once: only the heads compute."""
    precision: str = "bf16"
    checkpointing: Checkpointing = "none"
    compile: bool = False
    graph: bool = False

    @property
    def kept_in(self) -> Precision:
        """What the planner and autocast know; tf32 is a way to compute in fp32."""
        return "bf16" if self.precision == "bf16" else "fp32"

    @property
    def is_planned(self) -> bool:
        return not self.cached and not self.compile

    def __str__(self) -> str:
        parts = ["frozen-cached" if self.cached else "frozen" if self.frozen else "end to end", self.precision]
        parts += ["blocks compiled"] * self.compile + ["CUDA graphs"] * self.graph
        parts += [f"checkpointing {self.checkpointing}"] * (self.checkpointing != "none")
        return f"{', '.join(parts)}, batch {self.micro}"


CASES = {
    "bf16": (Case(128),),
    "batches": (Case(64), Case(256)),
    "recompute": (
        Case(256, checkpointing="blocks"),
        Case(256, checkpointing="stages"),
        Case(256, checkpointing="selective"),
    ),
    "frozen": (Case(128, frozen=True), Case(1024, frozen=True, cached=True)),
    "fp32": (Case(64, precision="tf32"), Case(64, precision="fp32")),
    "graphed": (Case(64, graph=True), Case(128, graph=True), Case(256, graph=True)),
    "compiled": (Case(128, compile=True), Case(128, compile=True, graph=True)),
}


def cases(quick: bool, section: str | None = None) -> list[Case]:
    """Those of a section, or of all; if quick only the first and last of a section, with tiny batches."""
    chosen = [held for name, held in CASES.items() if section in (None, name)]
    if quick:
        chosen = [
            tuple(dict.fromkeys(replace(case, micro=QUICK_BATCH) for case in (held[0], held[-1]))) for held in chosen
        ]
    return [case for held in chosen for case in held]


def compiled(bench: Bench) -> Iterator[Row]:
    """The poster encoder's blocks compiled: a step, also with CUDA graphs, then the real loop with them."""
    from gpu_loop import real_loop

    yield from _speeds(bench, "compiled")
    bench.free()
    yield from real_loop(bench, compile=True, cuda_graph=True)


def graphed(bench: Bench) -> Iterator[Row]:
    """The poster encoder's passes as CUDA graphs: steps, then the real loop."""
    from gpu_loop import real_loop

    yield from _speeds(bench, "graphed")
    bench.free()
    yield from real_loop(bench, cuda_graph=True)


def _speeds(bench: Bench, section: str) -> Iterator[Row]:
    for case in cases(bench.quick, section):
        yield from _speed(bench, case)
        bench.free()


bf16, batches, recompute, frozen, fp32 = (
    partial(_speeds, section=name) for name in ("bf16", "batches", "recompute", "frozen", "fp32")
)
"""Sections without more than their cases."""


def _speed(bench: Bench, case: Case) -> Iterator[Row]:
    """Samples per second, MFU, peak memory, and the planner's peak."""
    config = bench.config(case.frozen, compile=case.compile, cuda_graph=case.graph)
    took, rate = _measure(bench, case, config)
    if case.compile:
        yield Row(claim=f"{case}: first step, with compiling", value=took, unit="s")
    yield Row(claim=str(case), value=rate.value, unit="samples/s")
    limit = peak_flops(bench.device, case.precision)
    if limit and not case.cached:
        mfu = rate.value * bench.known.flops(config) / limit
        yield Row(claim=f"{case}: MFU", value=mfu, unit="share of the peak")
    if rate.peak:
        yield Row(claim=f"{case}: peak memory", value=rate.peak / 2**30, unit="GiB allocated")
    if rate.peak and case.is_planned:
        off = bench.known.peak(config, case.checkpointing, case.kept_in, case.micro) / rate.peak - 1
        yield Row(
            claim=f"{case}: planned over measured peak, less 1",
            value=off,
            unit="share",
            goal=f"within {GOAL_PLAN:.0%}",
            holds=abs(off) <= GOAL_PLAN,
        )


def _measure(bench: Bench, case: Case, config: Config) -> tuple[float, Rate]:
    """Seconds of the first step, and the rate of those that follow; the model is gone afterwards."""
    with tf32(case.precision == "tf32") if case.kept_in == "fp32" else nullcontext():
        step = make_step(config, bench.words, case.checkpointing, case.kept_in, bench.world)
        batch = _encoded(bench, config, case.micro) if case.cached else bench.batch(config, case.micro)
        began = time.perf_counter()
        step([batch])
        bench.synchronise()
        return time.perf_counter() - began, bench.rate(lambda: step([batch]), case.micro)


def _encoded(bench: Bench, config: Config, samples: int) -> Batch:
    with torch.device("meta"):
        model = GenreClassifier(config.model, bench.words.genres, config.data.image_size, 100, None, load_weights=False)
    encodings = np.random.default_rng(0).random((samples, model.encoding_size), np.float32)
    batch = replace(bench.batch(config, samples), arrays={"all.encodings": encodings})
    return bench.pinned(batch)


def compiled_whole(bench: Bench) -> Iterator[Row]:
    """The whole poster encoder as one compiled network, in the plainest of loops."""
    micro = QUICK_BATCH if bench.quick else 128
    step = _plain_step(bench, micro)
    began = time.perf_counter()
    step()
    bench.synchronise()
    claim = f"end to end, bf16, network compiled as a whole, batch {micro}"
    yield Row(claim=f"{claim}: first step, with compiling", value=time.perf_counter() - began, unit="s")
    yield Row(claim=claim, value=bench.rate(step, micro).value, unit="samples/s")


def _plain_step(bench: Bench, micro: int) -> Callable[[], None]:
    config, words, device = bench.config(), bench.words, bench.device
    vectors = np.zeros((words.words, words.dim or 1), np.float32)
    model = GenreClassifier(config.model, words.genres, config.data.image_size, words.words, vectors, False)
    model.to(device).to(memory_format=torch.channels_last).train()
    model.image_encoders["poster"].network.compile(dynamic=False)
    optimizer = make_optimizer(model, config)
    batch, autocast = bench.batch(config, micro), autocast_for("bf16", device)
    images, tokens, labels = (torch.as_tensor(part).to(device) for part in (batch.images, batch.tokens, batch.labels))
    text, weights = FieldInput(tokens.long(), batch.lengths), torch.ones(micro, device=device)

    def step() -> None:
        with autocast():
            logits = model({"poster": FieldInput(whole(images, config.data.image_size)), "text": text})
        (loss_sum(logits, labels, weights) / micro).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def heads(bench: Bench) -> Iterator[Row]:
    """19 modules one by one against batched products, forward and backward."""
    width, hidden = (64, (32, 16)) if bench.quick else (3072, (1024, 512))
    for samples in (QUICK_BATCH,) if bench.quick else (32, 256):
        rates = {}
        encoding = torch.randn(samples, width, device=bench.device)
        for kernel in ("separate", "batched"):
            module = Heads(width, hidden, 19, kernel).to(bench.device)

            def act(module: Heads = module, encoding: torch.Tensor = encoding) -> None:
                with torch.autocast(bench.device.type, torch.bfloat16):
                    logits = module(encoding)
                logits.float().sum().backward()
                module.zero_grad(set_to_none=True)

            rates[kernel] = bench.rate(act, 1, chunk=100).value
            claim = f"heads {kernel}, batch {samples}"
            yield Row(claim=claim, value=1e3 / rates[kernel], unit="ms forward and backward")
        yield Row(
            claim=f"heads: batched over separate, batch {samples}",
            value=rates["batched"] / rates["separate"],
            unit="speed-up",
        )
