"""One writer per folder: a kernel lock, which is released however the process ends.

The lock is `flock` on the file `.lock` in the folder, which stays there and names its holder. Nodes that share the
folder share the lock, if their file system supports locks. Child processes of the writer do not inherit it. A copy of
the folder is not locked.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from genre_dist.printable import one_line
from genre_dist.storage import AnyPath

FILE = ".lock"
GRACE_SECONDS = 1.0
"""Longest wait for a writer that is about to end: a killed process, or the ranks of an earlier start."""
_LAUNCH = ("TORCHELASTIC_RUN_ID", "MASTER_PORT")
"""Variables that are the same on all nodes of a launch; addresses and counts of restarts differ."""


class BusyError(ValueError):
    """Another process writes the folder."""


class Lock:
    """A lock that is held until `release`, or until this process ends."""

    def __init__(self, file: IO[str] | None, shared: bool = False, made: Sequence[Path] = ()) -> None:
        self._file, self._shared, self._made = file, shared, made

    def share(self) -> None:
        """Make the lock shared: other ranks of this run can take it (shared=True), exclusive writers cannot.

        The kernel releases the exclusive lock first: raises BusyError if another start took the folder meanwhile.
        """
        if self._file is not None and not _lock(self._file, fcntl.LOCK_SH, GRACE_SECONDS):
            raise BusyError(_refusal(Path(self._file.name).parent, self._file))

    def fileno(self) -> int | None:
        """The file descriptor, for a child process that also holds the lock while it lives."""
        return None if self._file is None else self._file.fileno()

    def release(self) -> None:
        """Release the lock, and remove the folder if it was made for the lock and is empty."""
        if self._file is not None:
            if not self._shared:
                with suppress(OSError):
                    self._file.truncate(0)  # no holder: folders of equal content are equal byte for byte
                    _remove_if_empty(Path(self._file.name), self._made)
            self._file.close()


def take(folder: AnyPath, shared: bool = False, file: str = FILE) -> Lock:
    """Lock a folder (and make it if missing) against all other writers or, if shared, against exclusive ones.

    Raises BusyError, naming host and process, if another process has the lock. A remote folder has no lock; a file
    system without locks gives a warning.
    """
    if not isinstance(folder, Path):
        return Lock(None)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    opened = open(folder / file, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (held on purpose)
    try:
        # exclusive first, even to share: the first rank overwrites the names of earlier holders
        is_first = _lock(opened, fcntl.LOCK_EX, 0.0 if shared else GRACE_SECONDS)
        if not is_first and not (shared and _lock(opened, fcntl.LOCK_SH, GRACE_SECONDS)):
            raise BusyError(_refusal(folder, opened))
        if not _is_there(folder / file, opened):  # the last holder removed its empty folder
            opened.close()
            return take(folder, shared, file)
        with suppress(OSError):  # on a full disk the lock holds, only the holder's name is missing
            if is_first:
                opened.truncate(0)
            os.write(opened.fileno(), _own_line().encode())  # unbuffered, so that close() cannot fail
        if shared and is_first and not _lock(opened, fcntl.LOCK_SH, GRACE_SECONDS):
            raise BusyError(_refusal(folder, opened))
    except BaseException:
        opened.close()
        raise
    return Lock(opened, shared, made)


@contextmanager
def one_writer(folder: AnyPath, shared: bool = False, file: str = FILE) -> Iterator[Lock]:
    """Hold a folder's lock for a block; a missing folder is made, and removed again if nothing is written.

    Raises as `take` does.
    """
    lock = take(folder, shared, file)
    try:
        yield lock
    finally:
        lock.release()


def refuse_if_busy(folder: Path, file: str = FILE) -> None:
    """On ranks that do not take the lock themselves: raise BusyError if a process of another launch has it.

    All ranks of a second start then end at once, not only the one that takes the lock.
    """
    with suppress(FileNotFoundError, PermissionError), open(folder / file, "r+", encoding="utf-8") as opened:
        ends = time.monotonic() + GRACE_SECONDS
        # ranks share the lock once they have joined, so a shared lock is not held by this start
        while not _could(opened, fcntl.LOCK_EX) and (_could(opened, fcntl.LOCK_SH) or _launch_of(opened) != _launch()):
            if time.monotonic() >= ends:
                raise BusyError(_refusal(folder, opened))
            time.sleep(0.05)


def holds_files(folder: Path, beside: Sequence[str] = ()) -> bool:
    """Whether a folder has files other than its lock and these names."""
    return folder.is_dir() and any(path.name not in (FILE, *beside) for path in folder.iterdir())


def _remove_if_empty(file: Path, made: Sequence[Path]) -> None:
    """Remove a folder that holds only the lock, and the parents that were made for it."""
    if made and not holds_files(made[0]):
        file.unlink()
        for path in made:
            path.rmdir()


def _lock(opened: IO[str], mode: int, seconds: float) -> bool:
    """Try for so many seconds to get a lock; True also if the file system has no locks."""
    ends = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(opened, mode | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= ends:
                return False
            time.sleep(0.05)
        except OSError as error:
            print(
                f"{opened.name}: no locks on this file system ({error.strerror}); let no second process write there",
                file=sys.stderr,
            )
            return True


def _could(opened: IO[str], mode: int) -> bool:
    """Whether a lock is available; it is released again."""
    could = _lock(opened, mode, 0.0)
    with suppress(OSError):
        fcntl.flock(opened, fcntl.LOCK_UN)
    return could


def _is_there(path: Path, opened: IO[str]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    return False


def _own_line() -> str:
    return f"{os.getpid()} {os.uname().nodename} {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {_launch()}\n"


def _launch(environment: Mapping[str, str] = os.environ) -> str:
    """An identifier of the launch, the same on all its ranks; '-' for a process without a launcher."""
    return ",".join(environment.get(name, "").replace(" ", "_") for name in _LAUNCH).strip(",") or "-"


def _launch_of(opened: IO[str]) -> str:
    return (_first_line(opened) + [""] * 4)[3]


def _first_line(opened: IO[str]) -> list[str]:
    opened.seek(0)
    return one_line(opened.readline(4096), 4096).split()


def _refusal(folder: Path, opened: IO[str]) -> str:
    pid, host, since, *_ = _first_line(opened) + ["?"] * 3
    return (
        f"{folder} is being written by process {pid} on {host} (since {since}), or by what it started: wait until that "
        "has ended, stop it, or name another folder"
    )
