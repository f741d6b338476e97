"""Running a study's tasks one after the other, each in a process of its own."""

import ctypes
import fcntl
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from genre_dist.study.chain.schema import load_study
from genre_dist.study.chain.tasks import Task, tasks
from genre_dist.training.stopping import PREEMPTED, SIGNALS

LOOK_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def run_study(config: Path, out: Path, changes: Sequence[str] = ()) -> int:
    """Run, or continue, a study: what is done is skipped, what was begun goes on.

    Returns 0, PREEMPTED if it was asked to stop and can be continued by the same command, 2 or 1 if a stage failed.
    Raises ValueError for a mistake in the study before anything runs, and if another process works in the folder.
    """
    study = load_study(config, changes)
    chain = tasks(study, config.parent, out, study.group or config.stem)
    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out) as lock, Stopping() as stopping:
        for number, task in enumerate(chain, 1):
            if task.done():
                print(f"== {number}/{len(chain)} {task.name}: done", flush=True)
                continue
            command = started_as(task)
            print(f"== {number}/{len(chain)} {task.name}: {shlex.join(command)}", flush=True)
            code = _run(task, command, stopping, lock)
            if stopping.reason or code == PREEMPTED:
                why = stopping.reason or "the stage was asked to"
                print(f"stopped in {task.name} ({why}); the same command goes on", flush=True)
                return PREEMPTED
            if code != 0:
                print(f"error: {task.name} ended with exit code {code}; see above", file=sys.stderr, flush=True)
                return 2 if code == 2 else 1
    print(f"finished: {out / 'report' / 'index.html'}", flush=True)
    return 0


def started_as(task: Task) -> list[str]:
    """The command of a task on all its ranks."""
    if task.processes == 1:
        return task.command()
    python, *rest = task.command()
    return [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={task.processes}", *rest]


class Stopping:
    """Notes a request to stop instead of dying of it."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __enter__(self) -> "Stopping":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name


def _run(task: Task, command: list[str], stopping: Stopping, lock: IO[str]) -> int:
    """Run a task to its end and return its exit code; a request to stop is passed on to it.

    One process is sent SIGTERM. Ranks are asked through the STOP file of their run: torchrun would kill them 30 s after
    a signal, whatever they are saving. It also ends with 1 whatever they end with, so their code is read from the run.
    """
    child = subprocess.Popen(command, pass_fds=(lock.fileno(),), preexec_fn=_end_with_parent)
    told = False
    while child.poll() is None:
        time.sleep(LOOK_SECONDS)
        if stopping.reason and task.run and task.processes > 1:
            with suppress(OSError):  # the run's folder may not be there yet; the run removes a STOP as it begins
                (task.run / "STOP").touch()
        elif stopping.reason and not told:
            child.send_signal(signal.SIGTERM)
            told = True
    if child.returncode == 1 and task.run and task.processes > 1:
        with suppress(OSError, ValueError):
            return int((task.run / "exit_code").read_text())
    return child.returncode


def _end_with_parent() -> None:
    """In the child: be sent SIGTERM when the study's process ends, even by SIGKILL, so that no stage runs on alone."""
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _alone_in(out: Path) -> Iterator[IO[str]]:
    """Hold the folder's lock. Stages inherit it: it is free when the last of them has ended.

    Raises ValueError if another process has it.
    """
    with open(out / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{out}: a study is at work here, or a stage of one that was killed; wait until it has ended"
            ) from None
        yield lock
