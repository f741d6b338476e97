"""What the sections of gpu.py share: the device, the model, batches, rates, and what was prepared beforehand."""

import gc
import importlib
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from gpu_known import Known
from gpu_measure import invented_batch
from gpu_prepare import pack_films
from gpu_worker import Options

from genre_dist.config import Config, DataConfig, HeadsConfig, ModelConfig, PosterConfig, TextConfig
from genre_dist.parallel.world import World
from genre_dist.planner.planned_model import Vocabulary
from genre_dist.planner.sizes import TYPICAL_TOKENS
from genre_dist.stream.batch import Batch
from genre_dist.stream.manifest import Manifest, load_manifest

LACKING = {
    "jsonargparse": ("jsonargparse",),
    "rich": ("rich", "rich.console", "rich.progress", "rich.table", "rich.text"),
}
"""Packages for options and progress bars, which modules of the training import and no section uses: a GPU machine may
lack them."""


class Rate(NamedTuple):
    """Samples per second, and the most memory that was allocated meanwhile, in bytes (0 on a CPU)."""

    value: float
    peak: int


class Bench:
    """What the sections share."""

    def __init__(self, options: Options) -> None:
        self.quick, self.work, self.traces = options.quick, options.work, options.traces
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")
        self.world = World(0, 1, self.device)
        if not self.on_gpu:
            torch.set_num_threads(1)  # threads that wait for each other show nothing about a GPU
        self.precision = "bf16" if self.on_gpu else "fp32"
        self.seconds = 0.0 if self.quick else 3.0
        self.words = vocabulary(self.quick)
        self._prepared = options.prepared
        self.known = Known(options.prepared)

    @property
    def is_h100(self) -> bool:
        return self.on_gpu and "H100" in torch.cuda.get_device_name()

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    def config(self, frozen: bool = False, **train: Any) -> Config:
        """The study's model at 224 pixels, a small one if quick; neither compiled nor graphed unless asked for."""
        config = study_config(self.quick, frozen)
        return replace(config, train=replace(config.train, **{"compile": False, "cuda_graph": False} | train))

    def batch(self, config: Config, samples: int) -> Batch:
        """Noise in the shape of samples, in pinned memory."""
        return self.pinned(invented_batch(config, self.words, samples, TYPICAL_TOKENS))

    def pinned(self, batch: Batch) -> Batch:
        """A copy of a batch in memory that a GPU copies from by itself."""
        if not self.on_gpu:
            return batch
        return batch.each(lambda array: torch.from_numpy(array.copy()).pin_memory().numpy())

    def manifest(self) -> Manifest:
        """The packed shards; a small set is made where none was prepared."""
        if self._prepared is None:
            self._prepared = self.work / "prepared"
            if not (self._prepared / "shards" / "manifest.json").exists():
                try:
                    pack_films(self._prepared, 120 if self.quick else 600, self.quick)
                except ImportError as error:
                    raise RuntimeError(f"no shards: prepare them elsewhere (--prepare), here {error}") from None
        return load_manifest(str(self._prepared / "shards"))

    def synchronise(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def rate(self, act: Callable[[], object], samples: int, chunk: int = 10) -> Rate:
        """Samples per second after warm-up; the device is waited for once in `chunk` rounds only."""
        chunk, warm_up = (1, 0) if self.quick else (chunk, 3)
        for _ in range(warm_up):
            act()
        self.synchronise()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        began, rounds = time.perf_counter(), 0
        while rounds == 0 or time.perf_counter() - began < self.seconds:
            for _ in range(chunk):
                act()
            self.synchronise()
            rounds += chunk
        seconds = time.perf_counter() - began
        return Rate(rounds * samples / seconds, torch.cuda.max_memory_allocated(self.device) if self.on_gpu else 0)

    def free(self) -> None:
        """Give back what a section left in memory."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products and convolutions in fp32 may be rounded to TF32's 10 bits on their way in."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def vocabulary(quick: bool) -> Vocabulary:
    """Of invented texts: what the planner assumes without shards, or a small one."""
    return Vocabulary(500 if quick else 30_000, 300, 19, "assumed")


def study_config(quick: bool, frozen: bool = False) -> Config:
    """The study's model at 224 pixels, or a small one."""
    model = ModelConfig(
        text=TextConfig(frozen=frozen, hidden=16, layers=1) if quick else TextConfig(frozen=frozen),
        poster=PosterConfig(arch="resnet18" if quick else "resnet152", weights="none", frozen=frozen),
        heads=HeadsConfig(hidden=(32, 16) if quick else (1024, 512)),
    )
    data = DataConfig(shards="nowhere", image_size=32 if quick else 224, micro_batch=1, global_batch=1)
    return Config(model=model, data=data)


def stand_in_for_missing() -> None:
    """Put modules without content where packages of `LACKING` are missing; before the training is imported."""
    for package, modules in LACKING.items():
        try:
            importlib.import_module(package)
        except ImportError:
            for name in modules:
                sys.modules[name] = _StandIn(name)


class _StandIn(types.ModuleType):
    """A module in which every name is a class that takes anything and does nothing."""

    __path__: list[str] = []  # noqa: RUF012 (as a package has it)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _Nothing:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: object) -> None: ...
