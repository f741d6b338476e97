"""A lock on a run's folder, held by all ranks of a launch against every other launch.

This module imports no torch, so that a second launch is refused before any large import.

    with one_run(folder) as held:             # rank 0 has the folder, or the launch is refused
        from genre_dist.parallel.world import all_ranks
        with all_ranks() as world:
            held.share(world)                 # now every rank holds it
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from genre_dist.atomic import remove_leftovers
from genre_dist.config import Config, derive_batches
from genre_dist.lock import BusyError, Lock, refuse_if_busy, take
from genre_dist.parallel.launcher import note_end, note_exit_code, own_rank, world_size
from genre_dist.parallel.processes import with_launcher
from genre_dist.storage import AnyPath

if TYPE_CHECKING:
    from genre_dist.parallel.world import World


class Held:
    """This rank's lock on the folder, from `one_run`."""

    def __init__(self, folder: AnyPath, lock: Lock | None) -> None:
        self.folder, self._lock = folder, lock

    def share(self, world: "World") -> None:
        """Share the lock with the other ranks after the rendezvous; all ranks call it and return when all hold it.

        So the next launch waits for the last rank of this one, whichever dies first. Raises BusyError if a rank of
        another launch still holds the folder.
        """
        if world.size == 1:
            return
        if self._lock is not None:
            self._lock.share()
        world.barrier()
        if self._lock is None:
            self._lock = take(self.folder, shared=True)
        world.barrier()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()


@contextmanager
def one_run(folder: AnyPath) -> Iterator[Held]:
    """Hold a folder for all ranks of this launch; enter before importing torch, call `share` after the rendezvous.

    No rank outlives its launcher (see `with_launcher`). A missing folder is made, and removed again if it stays empty.
    Raises BusyError, within a second and on every rank, if another launch holds the folder; OSError if it cannot be
    made.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the watchdog's own line reports a lost peer
    held = Held(folder, _first_hold(folder))
    try:
        with with_launcher():
            yield held
    finally:
        held.release()


@contextmanager
def joined(config: Config) -> Iterator["World"]:
    """The ranks of this launch after the rendezvous; all of them hold the folder of the configured run.

    An error's exit code is written for job scripts and restarts. Raises BusyError as `one_run` does, before torch is
    imported; ValueError for an inconsistent configuration.
    """
    folder = Path(config.run.dir)
    with one_run(folder) as held:
        from genre_dist.parallel.strategies import check_strategy, strategy_name
        from genre_dist.parallel.world import all_ranks

        try:
            check_strategy(config, world_size())  # raises before a rank waits for the others
            derive_batches(config.data, world_size())
            if config.train.deterministic:  # cuBLAS reads it once: docs.pytorch.org/docs/stable/notes/randomness.html
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            group = strategy_name(config, world_size()) not in ("single", "ddp")
            with all_ranks(config.parallel.timeout_seconds, group) as world:
                held.share(world)
                note_exit_code(folder, None)
                yield world
        except BusyError:
            raise
        except (ValueError, SystemExit) as error:
            note_end(folder, error.code if isinstance(error, SystemExit) else 2)
            raise


@contextmanager
def writing(folder: Path) -> Iterator[Held]:
    """`one_run` for an output folder: rank 0 removes the leftovers of killed writers."""
    with one_run(folder) as held:
        if own_rank() == 0:
            remove_leftovers(folder)
        yield held


def _first_hold(folder: AnyPath) -> Lock | None:
    """Rank 0's lock; the other ranks only check that no other launch holds the folder."""
    if own_rank() == 0:
        return take(folder)
    if isinstance(folder, Path):
        refuse_if_busy(folder)
    return None
