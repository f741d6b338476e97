"""Saving at intervals of steps and minutes, in the background; the newest and the best checkpoints are kept.

A save stops the training only while the state is copied to the host's memory; a thread writes the copy, and the ranks
communicate over a process group of its own. The next save, and the end of the run, wait for it.
"""

import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.distributed as dist
from annotated_types import Ge, Le

from genre_dist.config import CheckpointConfig
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.world import World
from genre_dist.printable import printable
from genre_dist.sealed import read_sealed, write_sealed
from genre_dist.training.checkpoint import (
    checkpoint_path,
    is_as_written,
    is_whole,
    new_token,
    remove_leftovers,
    remove_old,
    write_checkpoint,
)
from genre_dist.training.ema import TrainState
from genre_dist.training.staging import Staging
from genre_dist.validation import Count

BEST = "best.json"
WAIT_AT_THE_END_SECONDS = 60.0


class Best(NamedTuple):
    """The evaluation that was best so far."""

    step: Count
    metric: str
    value: Annotated[float, Ge(-1e30), Le(1e30)]


class CheckpointManager:
    """Saves the state of a training into a folder, all ranks together.

    Every checkpoint stores `metadata`. All ranks call every method equally often, in the same order, unless the method
    says otherwise.
    """

    def __init__(
        self,
        folder: Path,
        state: Strategy | TrainState,
        world: World,
        config: CheckpointConfig,
        metadata: dict[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.state, self.world, self.config, self.metadata = folder, state, world, config, metadata
        self.best = read_best(folder) if world.is_first else None
        if self.best is not None and self.best.metric != config.best_metric:
            self.best = None
        self._best_step: int | None = None
        self._clock, self._last = clock, clock()
        self._group = dist.new_group(backend="gloo") if config.asynchronous and world.size > 1 else None
        self._staging = Staging(world.device) if config.asynchronous else None
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def asks(self) -> bool:
        """Whether it is time to save, by rank 0's clock. Any rank may call it at any time."""
        minutes = self.config.every_minutes
        return minutes is not None and self.world.is_first and self._clock() - self._last >= 60 * minutes

    def due(self, step: int) -> bool:
        """Whether to save after this step: by `every_steps`, or as the best so far. Any rank may call it any time."""
        every = self.config.every_steps
        return self._best_step == step or (every is not None and step % every == 0)

    def prepare(self) -> None:
        """Allocate the buffers for copies in the background: in the first save, training would wait for that.

        This copy may mix two steps; it is never written.
        """
        if self._staging is not None and self._thread is None:
            self._start(self._staging.copy, self.state.state_dict())

    def save(self, step: int) -> None:
        """Save the state after `step`; returns once it is copied, or, if not asynchronous, once it is written.

        Raises OSError if this checkpoint or, if asynchronous, the previous one could not be written.
        """
        self.wait()
        self._last = self._clock()
        self.state.sync_buffers()
        if self._has(step):
            return
        if self.world.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
        token = self.world.broadcast(new_token() if self.world.is_first else None)
        tensors = self.state.state_dict()
        if self._staging is not None:
            tensors = self._staging.copy(tensors)
        self._start(self._write, step, tensors, token)
        if self._staging is None:
            self.wait()

    def wait(self) -> None:
        """Wait for a save in progress. Raises OSError on all ranks if it could not be written."""
        if self._thread is None:
            return
        written = -1
        while self._thread.is_alive():
            self._thread.join(1.0)
            if written != (written := self._bytes_written()):  # a slow disk is no rank that hangs
                self.world.progress()
        self._thread, error, self._error = None, self._error, None
        if self.world.any(error is not None):
            raise error or OSError("the checkpoint could not be written on another rank")

    def note_evaluation(self, step: int, metrics: dict[str, Any] | None) -> None:
        """Note the metrics (of rank 0) after `step`: the best step so far is kept, or due if it is not saved yet."""
        metric, better = self.config.best_metric, False
        if metric is None:
            return
        if metrics is not None and metrics.get(metric) is not None:
            value, sign = float(metrics[metric]), -1 if metric == "loss" else 1
            better = math.isfinite(value) and (self.best is None or sign * value > sign * self.best.value)
            if better:
                self.best = Best(step, metric, value)
        if self.world.any(better):
            self._best_step = step
            self.wait()
            if self._has(step):
                self._tidy(step)

    def close(self) -> None:
        """Wait up to a minute for a save in progress. Any rank may call it at any time."""
        if self._thread is not None:
            self._thread.join(WAIT_AT_THE_END_SECONDS)
        if self._staging is not None:
            self._staging.close()

    def _bytes_written(self) -> int:
        """Bytes of unfinished checkpoints, of all ranks."""
        total = 0
        with suppress(OSError):  # a finished checkpoint was renamed meanwhile
            for path in self.folder.glob("step-*.partial/*"):
                total += path.stat().st_size
        return total

    def _has(self, step: int) -> bool:
        return self.world.any(self.world.is_first and is_as_written(checkpoint_path(self.folder, step)))

    def _start(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Run in a thread, on this rank's device: a new thread is on GPU 0 and would take memory there."""

        def run() -> None:
            if self.world.device.type == "cuda":
                torch.cuda.set_device(self.world.device)
            act(*arguments)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _write(self, step: int, state: dict[str, Any], token: str) -> None:
        try:
            write_checkpoint(self.folder, step, state, self.metadata, self.world, token, self._group)
            self._tidy(step)
        except Exception as error:  # the training's thread raises it in `wait`
            self._error = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
            if self.world.is_first and self._staging is not None:  # `wait` raises it only at the next save
                print(f"warning: {printable(error)}", file=sys.stderr, flush=True)

    def _tidy(self, step: int) -> None:
        """On rank 0, after a step's checkpoint is written: note it if it is the best, and delete old ones."""
        if self.world.is_first:
            if self.best is not None and self.best.step == step:
                write_sealed(self.folder / BEST, self.best._asdict())
            best = read_best(self.folder)
            remove_old(self.folder, step, self.config.keep, None if best is None else best.step)


def read_best(folder: Path) -> Best | None:
    """The best checkpoint of a folder, if one is noted and whole.

    Raises ValueError if the note is damaged.
    """
    if not (folder / BEST).is_file():
        return None
    best = read_sealed(Best, folder / BEST, "remove it: the best evaluation from then on is noted again")
    return best if is_whole(checkpoint_path(folder, best.step)) else None
