"""The watchdog ends a rank that waits for ever and prints its stacks; if another rank died, with that one's exit code.

Collectives hang when one rank is stuck; the stacks of all ranks show which.
"""

import faulthandler
import os
import select
import sys
import threading
import time
from contextlib import suppress

import torch.distributed as dist

from genre_dist.parallel.board import PATIENCE_SECONDS, Board, End
from genre_dist.parallel.launcher import HUNG, PREEMPTED

TO_LEAVE_SECONDS = 15.0
"""Delay before the watchdog ends a rank that does not notice the end of another one by itself (NCCL). Torchrun would
kill it after 30 s."""
TO_BE_READ_SECONDS = 5.0
"""Longest wait for a full pipe on stderr."""
CONNECTIONS = ("gloo", "NCCL", "c10d", "Connection closed by peer", "Connection reset by peer")
"""Words in errors of torch.distributed that have no type of their own."""


class Watchdog:
    """A thread that ends this rank if no rank makes progress for `seconds`: prints all stacks, exits with `HUNG`.

    Progress is a finished collective, or a unit of a rank's own work. All ranks learn of the first one that runs out
    of time, and print their stacks before any of them exits. Later errors in other threads (a connection that closes,
    as a rank exits) are consequences and change nothing. If the interpreter itself is stuck (a C call that holds the
    lock), `faulthandler`, which needs no interpreter, ends the rank a little later.
    """

    def __init__(self, rank: int, size: int, seconds: float) -> None:
        self.rank, self.size, self.seconds = rank, size, seconds
        self.farewell = min(5.0, seconds / 4)
        """Seconds between report and exit, so that every rank can report."""
        self.board: Board | None = None
        """Messages between the ranks, after the rendezvous."""
        self._progress = time.monotonic()
        self._spoken, self._closed = threading.Event(), threading.Event()
        self._speaking = threading.Lock()
        self._heard = 0.0
        # no daemon: Python waits for it, so a main thread that fails after the report cannot exit first
        self._thread = threading.Thread(target=self._watch, name="watchdog")
        self._thread.start()

    def join(self, store: dist.Store, host: int | None) -> None:
        """After the rendezvous: receive messages of the others through the store (see `Board`)."""
        self.board = Board(store, host, self.rank, self.size, min(1.0, self.seconds / 10), self._hear)
        self.progress()

    def progress(self) -> None:
        """Restart the clock after a finished collective, or a unit of this rank's own work."""
        self._progress = max(self._progress, time.monotonic())
        if self.board is not None:
            self.board.progress()

    def allow(self, seconds: float) -> None:
        """Extend the time once, for a long operation such as compilation."""
        self._progress = time.monotonic() + seconds

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self.board is not None:
            self.board.close()

    def part(self, error: BaseException) -> End | None:
        """Before this rank ends by an error: the other rank's end that caused it, or None.

        If the error is this rank's own, all ranks receive it. Does not return if a rank hangs: this one has reported
        already.
        """
        assert self.board is not None
        end = self.board.find_end() if _comes_from_others(error) else None
        if end is None:
            self.board.tell(self.board.own_end(*_own_end(error)))
        if self._spoken.is_set() or (self.board.end is not None and self.board.end.code == HUNG):
            self._thread.join()
        if self.board.is_host:
            self.board.linger()
        return end

    def _watch(self) -> None:
        main = threading.main_thread()
        while main.is_alive() and not self._closed.is_set():
            self._look()
            main.join(min(1.0, self.seconds / 10))  # returns at once when the main thread ends, well or not
        faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        now, end = time.monotonic(), None if self.board is None else self.board.end
        idle = now - (self._progress if self.board is None else max(self._progress, self.board.moved))
        if self._spoken.is_set() or (idle >= self.seconds and end is None):
            self._end_hung()
        if self.board is not None and end is not None and now - self._heard >= min(self.seconds, TO_LEAVE_SECONDS):
            self._say(f"error: {end}")
            self.board.linger()
            os._exit(end.code)
        # counted from now, or from the end of an allowed extension
        left = self.seconds + 3 * self.farewell - min(0.0, idle)
        faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or 2)

    def _hear(self, end: End) -> None:
        """Handle a rank's premature end."""
        self._heard = time.monotonic()
        if end.code == HUNG:
            self._speak()

    def _end_hung(self) -> None:
        """Report this rank's stacks, let the others report theirs, and exit."""
        faulthandler.dump_traceback_later(3 * PATIENCE_SECONDS, exit=True, file=sys.__stderr__ or 2)
        self._speak()
        if self.board is None:
            time.sleep(self.farewell)
        else:
            self.board.tell(self.board.own_end(HUNG, "waited in vain for the others"))
            self.board.linger()
        os._exit(HUNG)

    def _speak(self) -> None:
        with self._speaking:
            if not self._spoken.is_set():
                self._spoken.set()
                self._report(self.seconds)

    def _report(self, idle: float) -> None:
        self._say(
            f"no collective finished for {idle:.0f} s (parallel.timeout_seconds): a rank hangs.",
            "The one that is not waiting for the others is the one to look at. This rank's threads are here:",
            *_stacks().splitlines(),
        )

    def _say(self, *lines: str) -> None:
        """Write to stderr, past Python's buffers and their locks; drop the rest if nobody reads it."""
        with suppress(OSError):
            for line in lines:
                if not select.select([], [2], [], TO_BE_READ_SECONDS)[1]:
                    return
                os.write(2, f"[rank {self.rank} of {self.size}] {line}\n".encode()[: select.PIPE_BUF])


def _comes_from_others(error: BaseException | None) -> bool:
    """Whether an error, or its cause, concerns a connection between ranks."""
    if error is None:
        return False
    is_named = isinstance(error, RuntimeError) and any(word in str(error) for word in CONNECTIONS)
    return isinstance(error, dist.DistError) or is_named or _comes_from_others(error.__cause__ or error.__context__)


def _own_end(error: BaseException) -> tuple[int, str]:
    """Exit code and message for the ranks that cannot continue without this one."""
    message = f"{error}".partition("\n")[0]
    match error:
        case ValueError():
            return 2, f"ended: {message}"
        case OSError() | MemoryError():  # not the user's mistake: another attempt may succeed
            return 1, f"ended: {message}"
        case KeyboardInterrupt():
            return PREEMPTED, "was interrupted"
        case SystemExit():
            code = error.code if isinstance(error.code, int) else 1
            return code, "was asked to stop" if code == PREEMPTED else "ended"
    return 1, f"ended with {type(error).__name__}: {message}"


def _stacks() -> str:
    with open(os.memfd_create("stacks"), "w+b") as file:  # no folder may be writable
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
