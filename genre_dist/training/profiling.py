"""Profiling on demand: a Chrome trace of some steps, and on a GPU memory snapshots, also when memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from genre_dist.config import TrainConfig
from genre_dist.parallel.world import World
from genre_dist.training.out_of_memory import is_out_of_memory

MOST_EVENTS = 200_000
"""Length of a memory snapshot's history, in allocations and frees."""


class Profiler:
    """Traces the steps that `train.profile_steps` names, each rank its own, into the run's folder `profile`.

    The traces open in Perfetto (ui.perfetto.dev) or chrome://tracing, the snapshots in pytorch.org/memory_viz.
    """

    def __init__(self, train: TrainConfig, folder: Path, world: World) -> None:
        self.first, self.last = train.profiled or (0, 0)
        self.folder, self.world = folder / "profile", world
        self.snapshots = train.memory_snapshot and world.device.type == "cuda"
        self._running: profile | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context for the training that writes a snapshot if the GPU runs out of memory.

        (Where micro-batches may be halved, `Backoff` asks for that snapshot.)
        """
        if self.snapshots:
            torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS, stacks="python")
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                self.snapshot("out-of-memory")
            raise
        finally:
            self._stop()
            if self.snapshots:
                torch.cuda.memory._record_memory_history(enabled=None)

    def before_step(self, number: int) -> None:
        """Start with the first profiled step; steps count from 1, as in the record."""
        if self.first and number == self.first:
            activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (self.world.device.type == "cuda")]
            self._running = profile(activities=activities, record_shapes=True)
            self._running.start()

    def after_step(self, number: int) -> None:
        """Write the trace after the last profiled step."""
        if self._running is not None and number == self.last:
            self._stop()
            self.snapshot(f"steps-{self.first}-{self.last}")

    def snapshot(self, what: str) -> None:
        """Write the GPU memory's contents and the history of its allocations."""
        if self.snapshots:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory-{what}-rank-{self.world.rank}.pickle"))

    def _stop(self) -> None:
        running: Any = self._running
        if running is not None:
            self._running = None
            running.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"trace-steps-{self.first}-{self.last}-rank-{self.world.rank}.json"
            running.export_chrome_trace(str(self.folder / name))
