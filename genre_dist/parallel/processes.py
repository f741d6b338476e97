"""Liveness of this machine's processes: the launcher of this rank, and its peers."""

import os
import select
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path

from genre_dist.parallel.launcher import is_launched, own_rank

TO_SAVE_SECONDS = 7.0
"""Time for a last checkpoint after the launcher's end: no rank outlives the launcher by ten seconds."""
RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
"""Variables that launchers set: a process with one of them in its initial environment is the child of a launcher."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Identifies a machine, in all its containers; NCCL uses it too."""
DEEPSPEED = b"deepspeed.launcher.launch"
"""The lower of DeepSpeed's two processes on a node, which does not notice the death of the upper one."""


@contextmanager
def with_launcher() -> Iterator[None]:
    """Inside, this rank does not outlive its launcher, however that ends.

    A rank without its launcher gets SIGTERM (training saves a checkpoint), and is ended if that takes long. A process
    without a launcher is left alone.
    """
    closed = threading.Event()

    def watch(chain: list[int]) -> None:
        while are_there(chain):
            if closed.wait(1.0):
                return
        signal.setitimer(signal.ITIMER_REAL, TO_SAVE_SECONDS)  # the kernel's timer, which no thread here can delay
        message = f"rank {own_rank()}: the launcher is gone: asked to stop, ended after {TO_SAVE_SECONDS:g} s\n"
        with suppress(OSError):
            if select.select([], [2], [], 0)[1]:
                os.write(2, message.encode())
        _leave_pipes()
        os.kill(os.getpid(), signal.SIGTERM)

    if is_launched():
        threading.Thread(target=watch, args=(launchers(),), name="launcher", daemon=True).start()
    try:
        yield
    finally:
        closed.set()


def _leave_pipes() -> None:
    """Redirect output pipes to /dev/null: without their reader, the launcher, a write would fail or block."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def launchers() -> list[int]:
    """The chain of processes from this one up to its launcher, each the child of the next; all of them must live.

    A shell of the launcher may be in between.
    """
    chain = [os.getpid()]
    if _is_orphan():
        return [*chain, -1]
    while (parent := parent_of(chain[-1])) > 0:
        chain.append(parent)
        started = b"\0" + _read(parent, "environ")
        if DEEPSPEED not in _read(parent, "cmdline") and not any(f"\0{name}=".encode() in started for name in RANK):
            break
    return chain


def are_there(chain: list[int]) -> bool:
    """Whether each process of a chain is still the child of the next; an orphan gets another parent.

    True if that is unknown (no descriptor is left).
    """
    try:
        return all(parent_of(child) == parent for child, parent in pairwise(chain))
    except OSError:
        return True


def parent_of(pid: int) -> int:
    """The parent of a process; 0 if it is invisible from here, or the process has ended."""
    return os.getppid() if pid == os.getpid() else int((_stat(pid) or ["", "0"])[1])


def identity(pid: int) -> str:
    """A unique name of a running process, across machines and time; empty if it has ended."""
    fields = _stat(pid)
    return "" if fields is None or fields[0] in "ZX" else f"{_where()} {pid} {fields[19]}"


def is_over(known: str) -> bool:
    """Whether the process of an `identity` has ended; False if that is unknown from here, or at the moment."""
    where, _, numbers = known.rpartition(" ")[0].rpartition(" ")
    with suppress(OSError):
        return bool(known) and where == _where() and identity(int(numbers)) != known
    return False


def _is_orphan() -> bool:
    """Whether the launcher ended before this process could look, so that its parent is not the one that started it.

    A child has its parent's session, or its own, as torchrun's children do; torchrun is a Python program.
    """
    session, parent = os.getsid(0), os.getppid()
    if parent == 0:  # outside of this container
        return False
    if session != os.getpid():
        with suppress(ProcessLookupError):
            return os.getsid(parent) != session
        return True
    command = _read(parent, "cmdline")
    return (
        "TORCHELASTIC_RUN_ID" in os.environ and command != b"" and b"python" not in command and b"torch" not in command
    )


@cache
def _where() -> str:
    """Machine and PID namespace: equal for processes that see each other by their PIDs."""
    return f"{BOOT_ID.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None if there is no such process."""
    fields = _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()
    return fields or None


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
