"""One task of a study at work: a process that is watched, asked to stop, and never left alone."""

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
    """A task's process, on all its ranks. It inherits the study's lock; its output goes to a file if one is given."""

    def __init__(
        self,
        task: Task,
        command: list[str],
        lock: Lock,
        log: Path | None,
        environment: Mapping[str, str],
    ) -> None:
        self.task, self.log, self._told = task, log, False
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
        """None while it runs. torchrun ends with 1 whatever its ranks end with: their code is read from the run."""
        code = self._process.poll()
        if code == 1 and self.task.run and self.task.processes > 1:
            with suppress(OSError, ValueError):
                return int((self.task.run / "exit_code").read_text())
        return code

    def stop(self) -> None:
        """Ask it to save and stop; to be called again until it has ended.

        One process is sent SIGTERM. Ranks are asked through the STOP file of their run: torchrun would kill them 30 s
        after a signal, whatever they are saving.
        """
        if self._process.poll() is not None:
            return
        if self.task.run and self.task.processes > 1:
            with suppress(OSError):  # the run's folder may not be there yet; the run removes a STOP as it begins
                (self.task.run / "STOP").touch()
        elif not self._told:
            self._process.send_signal(signal.SIGTERM)
            self._told = True

    def where_to_look(self) -> str:
        """What says more about how it ended."""
        if self.log is None:
            return "see above"
        with open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join((f"the end of {self.log}:", *(f"  {printable(line)}" for line in lines)))


def _end_with_parent() -> None:
    """In the child: be sent SIGTERM when the study's process ends, even by SIGKILL, so that no stage runs on alone."""
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
