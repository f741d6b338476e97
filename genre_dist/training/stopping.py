"""Asking a run to stop: SIGTERM, SIGUSR1 (SLURM's warning), SIGINT, a STOP file in the run's folder, a time budget.

This module only notes a request. The training loop checks for one at every step and every evaluation batch; then all
ranks agree, save a checkpoint and exit with `PREEMPTED`, which a SLURM script turns into a requeue. A time budget is
checked between steps only: an evaluation longer than the budget would otherwise start over and over and never finish.
"""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from genre_dist.parallel.launcher import PREEMPTED, is_launched

BUDGET = "run.max_minutes"
HEEDED_SECONDS = 5
"""Time after which a process that is asked to stop no longer waits for a silent reader process."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 (no error: somebody asked)
    """All ranks gave up work because one was asked to stop."""


def heed_while_waiting(asked: Callable[[], bool], alone: bool, seconds: int) -> None:
    """End a rank's wait of `seconds` for a reader process if it is asked to stop: the ranks cannot agree meanwhile.

    Raises Stopped on a single rank, else SystemExit with PREEMPTED: the ranks that wait for this one end too, and steps
    since the last checkpoint are lost.
    """
    if seconds >= HEEDED_SECONDS and asked():
        if alone:
            raise Stopped
        print("asked to stop while a reader process is silent: ended without saving", file=sys.stderr, flush=True)
        raise SystemExit(PREEMPTED)


class StopRequest:
    """A context that notes requests to stop this process. A second SIGINT interrupts at once."""

    def __init__(
        self, run: Path, max_minutes: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reason: str | None = None
        self._file = run / "STOP"
        self._left_over = self._file.exists()
        self._clock = clock
        self._deadline = None if max_minutes is None else clock() + 60 * max_minutes
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def requested(self) -> bool:
        """Whether this process was asked to stop, or its time is spent."""
        if self.reason is None and self._deadline is not None and self._clock() >= self._deadline:
            self.reason = BUDGET
        return self.interrupted() or self.reason is not None

    def interrupted(self) -> bool:
        """Whether a signal or the STOP file (not the time budget) asks to stop, even during an evaluation."""
        if self.reason in (None, BUDGET) and self._file.exists():
            self.reason = f"the file {self._file}"
        return self.reason not in (None, BUDGET)

    def forget_left_over(self) -> None:
        """Remove the STOP file that ended an earlier start of the run, but none that is newer than this object."""
        if self._left_over:
            self._file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Restore the signals' handlers, unless a launcher's rank is about to exit with PREEMPTED.

        A launcher signals again once another rank has exited, which would interrupt this rank's exit.
        """
        is_heeded = kind is not None and issubclass(kind, Stopped) and is_launched()
        for number, handler in self._previous.items() if not is_heeded else ():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason not in (None, BUDGET):
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
