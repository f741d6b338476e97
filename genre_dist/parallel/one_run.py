"""A folder that all ranks of a launch write together: held by every one of them, against every other launch.

Here is no torch: a second launch is to be refused before it has imported anything large.

    with one_run(folder) as held:             # rank 0 has the folder, or the launch is refused
        from genre_dist.parallel.world import all_ranks
        with all_ranks() as world:
            held.share(world)                 # now every rank has it
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
    """What `one_run` gives: this rank's hold on the folder."""

    def __init__(self, folder: AnyPath, lock: Lock | None) -> None:
        self.folder, self._lock = folder, lock

    def share(self, world: "World") -> None:
        """Let the other ranks hold the folder too, once all have met; returns when they do. All ranks call it.

        So the next launch waits for the last rank of this one, whichever dies first. Raises BusyError if a rank of
        another launch is still there.
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
    """Hold a folder for all ranks of this launch; enter before torch is imported, and call `share` when they have met.

    None of them outlives its launcher (see `with_launcher`). The folder is made if it is not there; if nothing is
    written to it, it goes again. Raises BusyError, within a second and on every rank, if another launch has the folder;
    OSError if it cannot be made.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # one line of ours reports a peer that is gone
    held = Held(folder, _first_hold(folder))
    try:
        with with_launcher():
            yield held
    finally:
        held.release()


@contextmanager
def joined(config: Config) -> Iterator["World"]:
    """The ranks of this launch, met, with the folder of the run that a configuration trains held by all of them.

    How a run ends by an error is noted for job scripts and for restarts. Raises BusyError as `one_run` does, before
    torch is imported; ValueError for what does not fit together whoever joins.
    """
    folder = Path(config.run.dir)
    with one_run(folder) as held:
        from genre_dist.parallel.strategies import check_strategy, strategy_name
        from genre_dist.parallel.world import all_ranks

        try:
            check_strategy(config, world_size())  # what is wrong is told before anybody waits for the others
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
    """`one_run` for a folder that the launch writes anew: rank 0 removes what killed writers left in it."""
    with one_run(folder) as held:
        if own_rank() == 0:
            remove_leftovers(folder)
        yield held


def _first_hold(folder: AnyPath) -> Lock | None:
    """Rank 0's lock; the other ranks only look whether another launch is there."""
    if own_rank() == 0:
        return take(folder)
    if isinstance(folder, Path):
        refuse_if_busy(folder)
    return None
