"""What torchrun does not do by itself: it ends with 1 whatever its ranks end with, and restarts ranks that had every
reason to end. So a run notes how it ended, for job scripts and for the ranks of a restart.
"""

import os
from contextlib import suppress
from pathlib import Path

from genre_dist.atomic import atomic_file

HUNG = 70
"""Exit code of a rank when the ranks made no progress for too long (EX_SOFTWARE of sysexits.h)."""
PREEMPTED = 75
"""Exit code of a run that stopped early and can be continued (EX_TEMPFAIL of sysexits.h)."""
EXIT_CODE = "exit_code"
"""The file in a run's folder with the exit code of its last start; absent while it runs, or if it was killed."""


def own_rank() -> int:
    """This process's rank; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many ranks the launcher started, before any process group exists; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether a launcher started this process, by hand or not, as one of its ranks."""
    return "RANK" in os.environ


def restarted() -> bool:
    """Whether torchrun has started this group before, in the same launch."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def settled() -> int | None:
    """The exit code that this launch ended with for good, if it did; such a run is not to be tried again.

    torchrun restarts its ranks after any exit code but 0 (`--max-restarts`). To stop early was no failure, and what the
    user has to change is the same in the next attempt.
    """
    note = _note_of_launch()
    if note is not None:
        with suppress(OSError, ValueError):
            return int(note.read_text())
    return None


def settle(code: int) -> None:
    """Let no rank of this launch, on this node, be tried again after a restart."""
    note = _note_of_launch()
    if note is not None:
        with suppress(OSError), atomic_file(note, "w") as file:  # without it there are only needless attempts
            file.write(f"{code}\n")


def note_exit_code(run: Path, code: int | None) -> None:
    """Under torchrun rank 0 writes the run's exit code into its folder, or (None) removes an earlier start's."""
    if own_rank() != 0 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if code is None:
        (run / EXIT_CODE).unlink(missing_ok=True)
    elif run.is_dir():
        with suppress(OSError), atomic_file(run / EXIT_CODE, "w") as file:  # a full disk: the run prints its own error
            file.write(f"{code}\n")


def note_end(run: Path, code: object) -> None:
    """Note how a run ended, where that is not for another attempt to change."""
    if code in (0, 2, PREEMPTED):
        note_exit_code(run, int(str(code)))
    if code in (2, PREEMPTED):
        settle(int(str(code)))


def _note_of_launch() -> Path | None:
    """A file in the folder that torchrun makes for each launch, one on every node."""
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")  # LAUNCH/attempt_N/LOCAL_RANK/error.json
    return Path(reply).parents[2] / EXIT_CODE if reply and len(Path(reply).parents) > 2 else None
