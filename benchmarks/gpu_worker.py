"""The processes that measure: gpu.py itself never touches the GPU, so nothing that happens there can end it.

A worker runs one section after another and sends its rows as they come. One that dies, hangs or leaves the GPU in error
(after a device-side assert every later call fails) is replaced by a fresh one.
"""

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any, NamedTuple

from common import Row, machine


@dataclass(frozen=True)
class Options:
    """The settings of a process that measures."""

    quick: bool
    work: Path
    """A folder for what is not kept."""
    prepared: Path | None
    """What `--prepare` made; None: a small set is made in `work`."""
    traces: Path
    """Where the profiler's trace is written, without its ending."""


class Hello(NamedTuple):
    """A worker's first words."""

    machine: str
    on_gpu: bool


class Ended(NamedTuple):
    """How a section ended, as a worker tells it."""

    problem: str | None
    is_healthy: bool
    """The device still answers."""


def child_command() -> list[str]:
    """The start of a command for a process that ends with this one."""
    return [sys.executable, "-u", str(Path(__file__).with_name("gpu.py")), "--parent", str(os.getpid())]


class Worker:
    """A process that runs sections, seen from gpu.py."""

    def __init__(self, options: Options, log: IO[bytes]) -> None:
        self._log = log
        self._connection, theirs = Pipe()
        command = [*child_command(), "--worker", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # it ends together with what it starts
        )
        theirs.close()
        self._connection.send(options)

    def hello(self, limit: float) -> Hello:
        """Where it runs. Raises RuntimeError if it does not start."""
        try:
            if self._connection.poll(limit):
                hello: Hello = self._connection.recv()
                return hello
        except (EOFError, OSError):
            pass
        self.close()
        raise RuntimeError(self._end())

    def run(self, function: str, limit: float, tell: Callable[[Row], None]) -> str | None:
        """Run a section's function, each row passed on as it comes; returns what went wrong, if anything did.

        The worker is closed afterwards if it hangs, has ended, or its device answers no more.
        """
        deadline = time.monotonic() + limit
        try:
            self._connection.send(function)
            while True:
                if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                    self.close()
                    return f"given up after {limit:.0f} s"
                message = self._connection.recv()
                if isinstance(message, Row):
                    tell(message)
                elif isinstance(message, Ended):
                    if not message.is_healthy:
                        self.close()
                    return message.problem
        except (EOFError, OSError):
            self.close()
            return self._end()

    @property
    def is_open(self) -> bool:
        return self._process.returncode is None

    def close(self) -> None:
        """End it and what it has started."""
        if self.is_open:
            with suppress(ProcessLookupError):  # it has ended by itself, and nobody is left of its group
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._connection.close()

    def _end(self) -> str:
        """How the process ended, with the last line that it printed."""
        lines = Path(self._log.name).read_text(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f"its process ended with code {self._process.returncode}{f': {said[-1][:200]}' if said else ''}"


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process as soon as the one that started it has ended, however that ends (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        sys.exit(1)


def serve(descriptor: int) -> None:
    """A worker, from the inside: take sections' functions until nobody asks any more."""
    from gpu_bench import Bench, stand_in_for_missing

    stand_in_for_missing()
    connection = Connection(descriptor)
    bench = Bench(connection.recv())
    connection.send(Hello(machine(), bench.on_gpu))
    while True:
        try:
            function = connection.recv()
        except EOFError:
            return
        print(f"== {function}", flush=True)
        problem = _told(function, bench, lambda row: connection.send(replace(row, machine=machine())))
        connection.send(Ended(problem, _is_healthy(bench)))


def _told(function: str, bench: Any, tell: Callable[[Row], None]) -> str | None:
    """Tell a section's rows; returns what went wrong, if anything did."""
    module, _, name = function.partition(":")
    try:
        for row in getattr(importlib.import_module(module), name)(bench):
            tell(row)
        bench.synchronise()  # what was only asked for may fail yet
    except Exception as error:  # whatever it is, the other sections are worth having
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    return None


def _is_healthy(bench: Any) -> bool:
    """Give memory back; False if the device answers no more."""
    try:
        bench.synchronise()
        bench.free()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True
