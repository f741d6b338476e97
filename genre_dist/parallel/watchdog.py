"""A rank that waits for ever says where, and one that waits for a rank that is gone ends as that one did.

Collectives hang when one rank is stuck; a look at all ranks tells which.
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
"""A rank that can do nothing without one that has ended, and does not notice by itself (NCCL), is ended after that:
before torchrun kills it, which it does after 30 s."""
TO_BE_READ_SECONDS = 5.0
"""For so long a full pipe on stderr is waited for."""
CONNECTIONS = ("gloo", "NCCL", "c10d", "Connection closed by peer", "Connection reset by peer")
"""Words in errors of torch.distributed that have no type of their own."""


class Watchdog:
    """A thread that ends this rank if no rank makes progress for `seconds`: prints all stacks, exits with `HUNG`.

    Progress is a collective that finishes, or a piece of work of a rank's own. All ranks hear of the first one that
    runs out of time, and say where they are before any of them exits. What the other threads meet once this one has
    spoken (a connection that closes, as a rank exits) is a consequence and changes nothing. A rank whose interpreter
    itself is stuck (a C call that holds the lock) is ended by `faulthandler`, which needs no interpreter, a little
    later.
    """

    def __init__(self, rank: int, size: int, seconds: float) -> None:
        self.rank, self.size, self.seconds = rank, size, seconds
        self.farewell = min(5.0, seconds / 4)
        """Seconds between saying and exiting, so that every rank gets to say it."""
        self.board: Board | None = None
        """How the ranks hear of each other, once they have met."""
        self._progress = time.monotonic()
        self._spoken, self._closed = threading.Event(), threading.Event()
        self._speaking = threading.Lock()
        self._heard = 0.0
        # no daemon: Python waits for it before it exits, so a main thread that fails after the report cannot exit first
        self._thread = threading.Thread(target=self._watch, name="watchdog")
        self._thread.start()

    def join(self, store: dist.Store, host: int | None) -> None:
        """The ranks have met: hear of the others over their store (see `Board`)."""
        self.board = Board(store, host, self.rank, self.size, min(1.0, self.seconds / 10), self._hear)
        self.progress()

    def progress(self) -> None:
        """A collective has finished, or a piece of this rank's own work; the clock starts again."""
        self._progress = max(self._progress, time.monotonic())
        if self.board is not None:
            self.board.progress()

    def allow(self, seconds: float) -> None:
        """What comes next (a compiler at work) may take so much longer, once."""
        self._progress = time.monotonic() + seconds

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        if self.board is not None:
            self.board.close()

    def part(self, error: BaseException) -> End | None:
        """Before this rank ends by an error: the end of another one that it comes of, which all ranks hear of.

        None if the error is this rank's own; then they hear of that. Does not return if a rank hangs: this one has said
        all there is to say.
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
        # counted from now, or from the end of what was allowed to take longer
        left = self.seconds + 3 * self.farewell - min(0.0, idle)
        faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or 2)

    def _hear(self, end: End) -> None:
        """A rank has ended before its time."""
        self._heard = time.monotonic()
        if end.code == HUNG:
            self._speak()

    def _end_hung(self) -> None:
        """Say where this rank is, let the others do so, and exit."""
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
        """To stderr, past Python's buffers and their locks; if nobody reads it, the rest is let go."""
        with suppress(OSError):
            for line in lines:
                if not select.select([], [2], [], TO_BE_READ_SECONDS)[1]:
                    return
                os.write(2, f"[rank {self.rank} of {self.size}] {line}\n".encode()[: select.PIPE_BUF])


def _comes_from_others(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised of, is one of the connections between ranks."""
    if error is None:
        return False
    is_named = isinstance(error, RuntimeError) and any(word in str(error) for word in CONNECTIONS)
    return isinstance(error, dist.DistError) or is_named or _comes_from_others(error.__cause__ or error.__context__)


def _own_end(error: BaseException) -> tuple[int, str]:
    """Exit code, for those that cannot go on without this rank, and what they are to say."""
    message = f"{error}".partition("\n")[0]
    match error:
        case ValueError():
            return 2, f"ended: {message}"
        case OSError() | MemoryError():  # no mistake of the user's: another attempt may go further
            return 1, f"ended: {message}"
        case KeyboardInterrupt():
            return PREEMPTED, "was interrupted"
        case SystemExit():
            code = error.code if isinstance(error.code, int) else 1
            return code, "was asked to stop" if code == PREEMPTED else "ended"
    return 1, f"ended with {type(error).__name__}: {message}"


def _stacks() -> str:
    with open(os.memfd_create("stacks"), "w+b") as file:  # there may be no folder to write to
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
