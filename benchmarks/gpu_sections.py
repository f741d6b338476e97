"""What gpu.py measures beside training itself: heads, feeding a model, decoding, memory of several ranks."""

import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row

from genre_dist.config import Config, DataConfig, HeadsConfig, ModelConfig, ParallelConfig, PosterConfig, TextConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.heads import Heads
from genre_dist.parallel.world import World, start_world, stop_world
from genre_dist.planner.measure import invented_batch, make_step
from genre_dist.planner.model import Planned, Vocabulary, plan_model
from genre_dist.stream.reader import Batch
from genre_dist.training.throughput import peak_memory_bytes, training_flops

GOAL_WAIT = 0.02
WORDS = Vocabulary(30_000, 300, 19, "assumed")
FEW_WORDS = Vocabulary(500, 300, 19, "assumed")
TOKENS = 55


class Bench:
    """What the sections share."""

    def __init__(self, quick: bool, deadline: float) -> None:
        self.quick, self.deadline = quick, deadline
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.world = World(0, 1, self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # threads that wait for each other show nothing about a GPU
        self.seconds = 0.0 if quick else 3.0
        self.words = FEW_WORDS if quick else WORDS
        self._planned: dict[tuple[bool, str], Planned] = {}

    def config(self, frozen: bool = False, **train: Any) -> Config:
        """The study's model at 224 pixels; a small one if quick."""
        model = ModelConfig(
            text=TextConfig(frozen=frozen, hidden=16, layers=1) if self.quick else TextConfig(frozen=frozen),
            poster=PosterConfig(arch="resnet18" if self.quick else "resnet152", weights="none", frozen=frozen),
            heads=HeadsConfig(hidden=(32, 16) if self.quick else (1024, 512)),
        )
        data = DataConfig(shards="nowhere", image_size=64 if self.quick else 224, micro_batch=1, global_batch=1)
        config = Config(model=model, data=data)
        return replace(config, train=replace(config.train, **train))

    def batch(self, config: Config, samples: int) -> Batch:
        return invented_batch(config, self.words, samples, TOKENS)

    def planned(self, config: Config, frozen: bool, kind: str) -> Planned:
        if (frozen, kind) not in self._planned:
            kinds: Any = (kind,)
            self._planned[frozen, kind] = plan_model(config, kinds, TOKENS, on_gpu=self.device.type == "cuda")
        return self._planned[frozen, kind]

    def flops(self, config: Config) -> float:
        with torch.device("meta"):
            model = GenreClassifier(config.model, 19, config.data.image_size, 100, None, load_weights=False)
        return training_flops(model, config, torch.device("meta"))

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, act: Callable[[], object], samples: int) -> tuple[float, int]:
        """Samples per second after warm-up, and the peak memory in bytes (0 on a CPU)."""
        for _ in range(1 if self.quick else 3):
            act()
        self.synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        began, rounds = time.perf_counter(), 0
        while rounds < 2 or time.perf_counter() - began < self.seconds:
            act()
            self.synchronise()
            rounds += 1
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return rounds * samples / (time.perf_counter() - began), peak

    def free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def heads(bench: Bench) -> Iterator[Row]:
    """19 modules one by one against batched products, forward and backward."""
    width, hidden = (64, (32, 16)) if bench.quick else (3072, (1024, 512))
    for samples in (4,) if bench.quick else (32, 256):
        rates = {}
        encoding = torch.randn(samples, width, device=bench.device)
        for kernel in ("separate", "batched"):
            module = Heads(width, hidden, 19, kernel).to(bench.device)  # type: ignore[arg-type]

            def act(module: Heads = module, encoding: torch.Tensor = encoding) -> None:
                with torch.autocast(bench.device.type, torch.bfloat16):
                    logits = module(encoding)
                logits.float().sum().backward()
                module.zero_grad(set_to_none=True)

            rates[kernel] = bench.rate(act, 1)[0]
            yield Row(
                claim=f"heads {kernel}, batch {samples}", value=1e3 / rates[kernel], unit="ms forward and backward"
            )
        yield Row(
            claim=f"heads: batched over separate, batch {samples}",
            value=rates["batched"] / rates["separate"],
            unit="speed-up",
        )


def feeding(bench: Bench) -> Iterator[Row]:
    """Loader alone, model alone, both together, and how long the model waits for data."""
    from genre_dist.acquire.sample import make_sample
    from genre_dist.prepare.pack import pack
    from genre_dist.stream import ShardReader, TrainStream
    from genre_dist.stream.device import device_feed

    micro = 8 if bench.quick else 128
    films = 60 if bench.quick else 3000
    workers = 1 if bench.quick else max(2, min(16, len(os.sched_getaffinity(0)) - 1))
    config = bench.config()
    with tempfile.TemporaryDirectory() as folder:
        make_sample(films, 0, Path(folder, "catalogue"), (60, 90) if bench.quick else (342, 513))
        manifest = pack(
            Path(folder, "catalogue"), Path(folder, "shards"), size=72 if bench.quick else 256, workers=workers
        )
        feed = device_feed(bench.device, "cpu")
        reader = ShardReader(manifest, "train", ("poster", "overview"), 256)
        fed: dict[str, Any] = {} if feed is None else {"feed": feed}
        lanes = {"global_batch": micro, "micro_batch": micro}
        stream = TrainStream(reader, **lanes, seed=0, workers=workers, last_batch="drop", **fed)
        rounds = min(3 if bench.quick else 60, 4 * len(stream))
        batches = stream.batches()
        next(batches)
        began = time.perf_counter()
        for _ in range(rounds):
            held = next(batches)
        loader = rounds * micro / (time.perf_counter() - began)
        yield Row(claim=f"loader alone, {workers} workers", value=loader, unit="samples/s")
        words = replace_words(manifest)
        step = make_step(config, words, "none", "bf16" if bench.device.type == "cuda" else "fp32", bench.world)
        model, _ = bench.rate(lambda: step(held), micro)
        yield Row(claim=f"model alone, one batch again and again, batch {micro}", value=model, unit="samples/s")
        waited, began = 0.0, time.perf_counter()
        for _ in range(rounds):
            asked = time.perf_counter()
            micro_batches = next(batches)
            waited += time.perf_counter() - asked
            step(micro_batches)
        bench.synchronise()
        seconds = time.perf_counter() - began
        batches.close()
    yield Row(claim="both together", value=rounds * micro / seconds, unit="samples/s")
    on_gpu = bench.device.type == "cuda"
    yield Row(
        claim="both: waiting for data",
        value=waited / seconds,
        unit="share of the time",
        goal=f"<= {GOAL_WAIT:.0%}" if on_gpu else "",
        holds=waited / seconds <= GOAL_WAIT if on_gpu else None,
    )


def replace_words(manifest: Any) -> Vocabulary:
    return Vocabulary(int(manifest.text["words"]), 300, len(manifest.genres), str(manifest.folder))


def decoding(bench: Bench) -> Iterator[Row]:
    """JPEGs of 256 x 256 on one CPU core and on the GPU."""
    import cv2

    from genre_dist.stream.decode import decode_jpeg

    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (16, 16, 3), np.uint8)
    picture = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    out = np.empty((256, 256, 3), np.uint8)
    yield Row(
        claim="JPEG decoding, one CPU core", value=bench.rate(lambda: decode_jpeg(jpeg, out), 1)[0], unit="images/s"
    )
    if bench.device.type != "cuda":
        yield Row(claim="JPEG decoding on the GPU", value=float("nan"), unit="needs CUDA")
        return
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as on_device

    tensor = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
    many = [tensor] * 128
    act = lambda: on_device(many, mode=ImageReadMode.RGB, device=bench.device)  # noqa: E731
    yield Row(claim="JPEG decoding on the GPU, batches of 128", value=bench.rate(act, 128)[0], unit="images/s")


def spread(bench: Bench, strategy: str) -> Iterator[Row]:
    """Memory of each of two ranks, on one GPU over gloo, in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(Path(__file__).with_name("gpu.py")), "--rank_of", strategy, *["--quick"] * bench.quick]
    left = max(20.0, bench.deadline - time.monotonic())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": bench.device.type}
    done = subprocess.run(command, capture_output=True, text=True, timeout=min(120, left), env=environment)
    told = re.findall(r"PEAK (\d+\.\d{3})", done.stdout)  # two ranks may write on one line
    if done.returncode or not told:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1][:200])
    yield Row(
        claim=f"{strategy} on 2 ranks: peak memory a rank",
        value=max(map(float, told)),
        unit="GiB",
    )


def one_rank(strategy: str, quick: bool) -> None:
    """A rank of `spread`: three steps, then its peak."""
    world = start_world()
    bench = Bench(quick, float("inf"))
    config = bench.config()
    micro = 2 if quick else 16
    config = replace(
        config,
        parallel=ParallelConfig(strategy=strategy),  # type: ignore[arg-type]
        data=replace(config.data, global_batch=2 * micro, micro_batch=micro),
    )
    step = make_step(config, bench.words, "none", "fp32", world)
    for _ in range(3):
        step([bench.batch(config, micro)])
    print(f"PEAK {peak_memory_bytes(world.device) / 2**30:.3f}", flush=True)
    stop_world(world)
