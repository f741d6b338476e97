"""Whether processes of this machine are still there: the launcher above this rank, and ranks beside it."""

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
"""For so long a rank may write a checkpoint when its launcher is gone: no rank outlives that by ten seconds."""
RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
"""What launchers tell each of their processes: one with such a variable in the environment it began with was started
by a launcher."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Tells machines apart, and is the same in all containers of one; NCCL tells them apart by it too."""
DEEPSPEED = b"deepspeed.launcher.launch"
"""Of DeepSpeed's two processes on a node the lower one, which does not notice that the upper one has died."""


@contextmanager
def with_launcher() -> Iterator[None]:
    """Inside, this rank does not outlive its launcher, however that ends.

    It is asked to stop (SIGTERM: a checkpoint is saved if it trains), and ended if that takes long. What was started
    by hand is left alone.
    """
    closed = threading.Event()

    def watch(chain: list[int]) -> None:
        while are_there(chain):
            if closed.wait(1.0):
                return
        signal.setitimer(signal.ITIMER_REAL, TO_SAVE_SECONDS)  # the kernel's: nothing here can hold it up
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
    """The launcher that read this rank's output is gone: a line more would be an error, or never be taken."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def launchers() -> list[int]:
    """This process and those above it up to the launcher, each the child of the next: all of them have to stay.

    Between a rank and its launcher may be a shell that the launcher started.
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
    """Whether each process of a chain is still the child of the next: when that dies, another becomes its parent.

    True where that cannot be seen (no descriptor is left).
    """
    try:
        return all(parent_of(child) == parent for child, parent in pairwise(chain))
    except OSError:
        return True


def parent_of(pid: int) -> int:
    """The process above another; 0 if it is not seen from here, or the other is gone."""
    return os.getppid() if pid == os.getpid() else int((_stat(pid) or ["", "0"])[1])


def identity(pid: int) -> str:
    """What tells a running process from all others, on other machines and later ones too; empty if it has ended."""
    fields = _stat(pid)
    return "" if fields is None or fields[0] in "ZX" else f"{_where()} {pid} {fields[19]}"


def is_over(known: str) -> bool:
    """Whether the process of an `identity` has ended; False where it cannot be seen from here, or just now."""
    where, _, numbers = known.rpartition(" ")[0].rpartition(" ")
    with suppress(OSError):
        return bool(known) and where == _where() and identity(int(numbers)) != known
    return False


def _is_orphan() -> bool:
    """Whether the launcher was gone before this process could look: its parent is then none that started it.

    A child is of its parent's session, or has made one of its own, as torchrun lets it; torchrun is a Python program.
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
    """The same for processes that see each other by their numbers: machine, and container."""
    return f"{BOOT_ID.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _stat(pid: int) -> list[str] | None:
    """What the kernel tells of a process, from its state on; None if it is not there."""
    fields = _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()
    return fields or None


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
