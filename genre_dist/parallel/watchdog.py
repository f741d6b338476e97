"""A rank that waits for ever says where. Collectives hang when one rank is stuck; a look at all ranks tells which."""

import faulthandler
import os
import sys
import tempfile
import threading
import time

HUNG = 70
"""Exit code of a rank that made no progress for too long (EX_SOFTWARE of sysexits.h)."""


class Watchdog:
    """Ends a rank that finishes no collective for `seconds`: prints the stacks of all its threads, exits with `HUNG`.

    Ranks that wait for a stuck one all run out of time together; each says where it is before the first one exits.
    What the other threads meet once it has spoken (a connection that closes, as the first rank exits) is a consequence
    and changes nothing. A rank whose interpreter itself is stuck (a C call that holds the lock) is ended by
    `faulthandler`, which needs no interpreter, a little later.
    """

    def __init__(self, rank: int, size: int, seconds: float) -> None:
        self.rank, self.size, self.seconds = rank, size, seconds
        self.farewell = min(5.0, seconds / 4)
        """Seconds between saying and exiting, so that every rank gets to say it."""
        self._progress = time.monotonic()
        self._closed = threading.Event()
        # no daemon: Python waits for it before it exits, so a main thread that fails after the report cannot exit first
        threading.Thread(target=self._watch, name="watchdog").start()

    def progress(self) -> None:
        """A collective has finished; the clock starts again."""
        self._progress = max(self._progress, time.monotonic())

    def allow(self, seconds: float) -> None:
        """What comes next (a compiler at work) may take so much longer, once."""
        self._progress = time.monotonic() + seconds

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        main = threading.main_thread()
        while main.is_alive() and not self._closed.is_set():
            idle = time.monotonic() - self._progress
            if idle >= self.seconds:
                self._report(idle)
                time.sleep(self.farewell)
                os._exit(HUNG)
            # counted from now, or from the end of what was allowed to take longer
            left = self.seconds + 3 * self.farewell - min(0.0, idle)
            faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or 2)
            main.join(min(1.0, self.seconds / 10))  # returns at once when the main thread ends, well or not
        faulthandler.cancel_dump_traceback_later()

    def _report(self, idle: float) -> None:
        mark = f"[rank {self.rank} of {self.size}] "
        lines = [
            f"no collective finished for {idle:.0f} s (parallel.timeout_seconds={self.seconds:g}): a rank hangs.",
            "The one that is not waiting for the others is the one to look at. This rank's threads are here:",
            *_stacks().splitlines(),
        ]
        os.write(2, "".join(f"{mark}{line}\n" for line in lines).encode())  # past Python's buffers and their locks


def _stacks() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
