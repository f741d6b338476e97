"""Processes forked from one that has torch and the training imported: a start costs a fraction of a second, not five.

For ranks that are started without a launcher. What reads a process's command line, or the environment it began with,
sees the one they are forked from: tests of that start interpreters of their own.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any


def start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Start a function of a module of tests/ in a process of its own."""
    # the fork server does not know pytest's sys.path
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, sys.path)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills"])
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


class Forked:
    """`python -m MODULE ARGUMENTS` in such a process; for those who wait for it, what a Popen is."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.process = start(be_module, module, list(arguments), dict(environment), log)
        self.pid = self.process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def be_module(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """What the interpreter does with `-m`, in a session of its own."""
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # which runpy warns of
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
