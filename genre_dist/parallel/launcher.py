"""Exit codes under torchrun, which itself exits with 1 whatever its ranks' codes and restarts ranks that are finished.
A run therefore writes its exit code to a file, for job scripts and for the ranks of a restart.
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
    """Number of ranks, before any process group exists; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in os.environ


def restarted() -> bool:
    """Whether torchrun has started this group before, in the same launch."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def settled() -> int | None:
    """The final exit code of this launch, if it has one; a restart must not try such a run again.

    Torchrun restarts its ranks after any exit code but 0 (`--max-restarts`). An early stop is no failure, and a restart
    does not repair a user's mistake.
    """
    note = _note_of_launch()
    if note is not None:
        with suppress(OSError, ValueError):
            return int(note.read_text())
    return None


def settle(code: int) -> None:
    """Make an exit code final: after a restart no rank of this launch, on this node, tries again."""
    note = _note_of_launch()
    if note is not None:
        with suppress(OSError), atomic_file(note, "w") as file:  # a failure only costs needless attempts
            file.write(f"{code}\n")


def note_exit_code(run: Path, code: int | None) -> None:
    """Under torchrun rank 0 writes the run's exit code into its folder, or (None) removes an earlier one."""
    if own_rank() != 0 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if code is None:
        (run / EXIT_CODE).unlink(missing_ok=True)
    elif run.is_dir():
        with suppress(OSError), atomic_file(run / EXIT_CODE, "w") as file:  # a full disk: the run prints its own error
            file.write(f"{code}\n")


def note_end(run: Path, code: object) -> None:
    """Write a run's exit code, if another attempt would not change it."""
    if code in (0, 2, PREEMPTED):
        note_exit_code(run, int(str(code)))
    if code in (2, PREEMPTED):
        settle(int(str(code)))


def _note_of_launch() -> Path | None:
    """A file in torchrun's folder of this launch on this node."""
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")  # LAUNCH/attempt_N/LOCAL_RANK/error.json
    return Path(reply).parents[2] / EXIT_CODE if reply and len(Path(reply).parents) > 2 else None
