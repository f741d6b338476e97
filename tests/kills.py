"""Ranks that carry a bomb: at the n-th moment of their life they kill themselves, or ask the group to stop.

Moments are the calls that matter when a process dies: loading and saving a checkpoint, a step, a forward pass, a batch
of an evaluation, a row of the record. Ranks are forked from a process that has everything imported, so that a life
costs a fraction of a second.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import forked
import helpers
from torch import Tensor, nn

import genre_dist.training.checkpoint as checkpoint
import genre_dist.training.evaluation as evaluation
import genre_dist.training.start as resuming
from genre_dist.config import Config
from genre_dist.config.files import parse_config
from genre_dist.stream.loader import TrainStream
from genre_dist.train import train
from genre_dist.training.checkpoint_manager import CheckpointManager
from genre_dist.training.metrics_log import MetricsLog
from genre_dist.training.step import TrainStep

STEPS, GLOBAL_BATCH = 60, 8
RUN = (
    *("--data.global_batch", GLOBAL_BATCH, "--train.steps", STEPS, "--train.eval_every_steps", 20),
    *("--data.workers", 0, "--checkpoint.every_steps", 3, "--model.heads.hidden", "[]"),
)
SIGNALS = {name: getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGUSR1", "SIGSTOP")}


def short_run(shards: Path, run: Path, *more: object) -> Config:
    """Sixty steps of the small model, three evaluations, a checkpoint every three steps."""
    return parse_config(helpers.options(shards, run, *RUN, *more)).config


def said(folder: Path) -> str:
    """What the ranks of all lives said."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.log")))


class Bomb(NamedTuple):
    """What happens to which rank, at which moment of its life."""

    rank: int
    moment: int
    how: str  # a signal's name, or STOP


class Ranks:
    """The ranks of one life; when the block ends, they are gone."""

    def __init__(self, world: int, config: Config, log: Path, bomb: Bomb | None = None) -> None:
        port = helpers.free_port()
        self.ranks = [forked.start(be_rank, rank, world, port, config, log, bomb) for rank in range(world)]

    def codes(self) -> list[int | None]:
        return [rank.exitcode for rank in self.ranks]

    def wait(self, seconds: float = 120) -> list[int]:
        """Their exit codes; a hang is a failure. When one has failed the others are told to end, as torchrun does."""
        helpers.until(lambda: any(self.codes()) or None not in self.codes(), seconds, "a rank to end")
        for rank in self.ranks:
            if rank.exitcode is None:
                rank.terminate()
        helpers.until(lambda: None not in self.codes(), seconds, "the other ranks to end, too")
        return [int(code or 0) for code in self.codes()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.join()


def live(world: int, config: Config, log: Path, bomb: Bomb | None = None) -> list[int]:
    """One life of the group, to its end; the ranks' exit codes."""
    with Ranks(world, config, log, bomb) as ranks:
        return ranks.wait()


def be_rank(rank: int, world: int, port: int, config: Config, log: Path, bomb: Bomb | None) -> None:
    """One life of one rank, with what it says in a file of its own; notes the films of every step."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    with open(log / f"rank-{rank}.log", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    note_films(log / f"films-{rank}.jsonl")
    if bomb is not None and bomb.rank == rank:
        carry(bomb, Path(config.run.dir))
    sys.exit(train(config))


def carry(bomb: Bomb, run: Path) -> None:
    """Put the bomb into every call that is a moment."""
    passed = 0

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed != bomb.moment:
            return
        print(f"{time.monotonic():.3f} {bomb}", flush=True)
        if bomb.how == "STOP":
            (run / "STOP").touch()
        else:
            os.kill(os.getpid(), SIGNALS[bomb.how])

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def ticking(*arguments: Any, **named: Any) -> Any:
            tick()
            return call(*arguments, **named)

        return ticking

    def after(call: Callable[..., Any]) -> Callable[..., Any]:
        def ticking(*arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            tick()
            return result

        return ticking

    places: list[tuple[Any, str]] = [
        (resuming, "load_checkpoint"),
        (TrainStep, "take"),
        (helpers.TinyNetwork, "forward"),
        (evaluation, "to_device"),
        (CheckpointManager, "save"),
        (MetricsLog, "write"),
    ]
    for owner, name in places:
        setattr(owner, name, before(getattr(owner, name)))
    checkpoint.dcp.save = after(checkpoint.dcp.save)  # its files are written, but it is not yet marked complete
    CheckpointManager.save = after(CheckpointManager.save)  # type: ignore[method-assign]


class Hanging(helpers.TinyNetwork):
    """A network in which rank 1 gets stuck in its third step."""

    def forward(self, images: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3 and os.environ.get("RANK") == "1":
            self.wait_for_ever()
        return super().forward(images)

    def wait_for_ever(self) -> None:
        threading.Event().wait()


def hanging_network() -> nn.Module:
    return Hanging()


class SlowAtFirst(helpers.TinyNetwork):
    """A network that takes two seconds for a step in the first start of a SLURM job, and no time in later ones."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            time.sleep(2)
        return super().forward(images)


def slow_at_first() -> nn.Module:
    return SlowAtFirst()


def note_films(path: Path) -> None:
    """Append `[step, films of this rank]` to a file for every step that is handed to the loop."""
    batches = TrainStream.batches

    def noting(self: TrainStream, start: int, *more: Any) -> Iterator[Any]:
        for position, micro_batches in enumerate(batches(self, start, *more), start):
            films = [int(film) for batch in micro_batches for film in batch.ids]
            with open(path, "a") as file:
                file.write(json.dumps([position, films]) + "\n")
            yield micro_batches

    TrainStream.batches = noting  # type: ignore[method-assign]
