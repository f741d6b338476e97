"""The process of a running task: its exit code, its stop request, and its end with the study."""

import ctypes
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from genre_dist.lock import Lock
from genre_dist.printable import printable
from genre_dist.study.tasks import Task

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_LAST_LINES, _LAST_BYTES = 20, 1 << 16


class Child:
    """A task's process with all its ranks. It inherits the study's lock; `log` is a file for its output."""

    def __init__(
        self,
        task: Task,
        command: list[str],
        lock: Lock,
        log: Path | None,
        environment: Mapping[str, str],
    ) -> None:
        self.task, self.log, self._signalled = task, log, False
        self._began = time.monotonic()
        with ExitStack() as stack:
            output = None
            if log is not None:
                log.parent.mkdir(exist_ok=True)
                output = stack.enter_context(open(log, "ab"))
            self._process = subprocess.Popen(
                command,
                pass_fds=[descriptor for descriptor in [lock.fileno()] if descriptor is not None],
                preexec_fn=_end_with_parent,
                stdout=output,
                stderr=output,
                env=environment,
            )

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._began) / 60

    def exit_code(self) -> int | None:
        """None while it runs. torchrun always ends with 1 on failure: the ranks' code is read from the run's folder."""
        code = self._process.poll()
        if code == 1 and self.task.run and self.task.processes > 1:
            with suppress(OSError, ValueError):
                return int((self.task.run / "exit_code").read_text())
        return code

    def stop(self) -> None:
        """Ask the process to save and stop; call it again until the process has ended.

        A single process gets SIGTERM. Several ranks get the STOP file of their run: torchrun would kill them 30 s after
        a signal, even while they save.
        """
        if self._process.poll() is not None:
            return
        if self.task.run and self.task.processes > 1:
            with suppress(OSError):  # the run makes its folder, and removes an old STOP, as it begins
                (self.task.run / "STOP").touch()
        elif not self._signalled:
            self._process.send_signal(signal.SIGTERM)
            self._signalled = True

    def where_to_look(self) -> str:
        """The end of its log, for an error message."""
        if self.log is None:
            return "see above"
        with open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join((f"the end of {self.log}:", *(f"  {printable(line)}" for line in lines)))


def _end_with_parent() -> None:
    """In the child: ask the kernel for SIGTERM when the study's process ends, even by SIGKILL."""
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
