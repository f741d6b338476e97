"""What happens to a command: signals to one of its processes at some moment, a full disk, few descriptors."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from laws import command_of, environment_of, marked

PAUSE_SECONDS = (0.1, 3.0)
DESCRIPTORS = (16, 48)
PLENTY = "1g"
RANKS_COMMAND = "--no-python"
"""torchrun's option after which a rank's whole command follows."""


class Fault(NamedTuple):
    """One thing that happens to one start of a command."""

    kind: str
    """SIGKILL, SIGTERM, pause (SIGSTOP, later SIGCONT), hang (SIGSTOP for good), full disk, few descriptors."""
    target: str = ""
    """Of a signal: the first process, a rank, a reader, another child, or all."""
    moment: float = 0.0
    """Of a signal: the share of an undisturbed start, by its progress in files or by its seconds."""
    by: str = ""
    amount: float = 0.0
    """Seconds of a pause, the share of the needed room on a disk, the number of descriptors."""

    @property
    def is_signal(self) -> bool:
        return self.kind not in ("full disk", "few descriptors")

    def __str__(self) -> str:
        if self.kind == "full disk":
            return f"a disk full at {self.amount:.0%} of what is written"
        if self.kind == "few descriptors":
            return f"{self.amount:.0f} descriptors"
        lasting = f" for {self.amount:.1f} s" if self.kind == "pause" else ""
        return f"{self.kind}{lasting} to {self.target} at {self.moment:.0%} of the {self.by}"


def draw_fault(draw: random.Random, kinds: tuple[str, ...], targets: tuple[str, ...], progress: bool) -> Fault:
    """A fault of these kinds; a hang is of a rank or a reader."""
    kind = draw.choice(kinds)
    if kind == "full disk":
        return Fault(kind, amount=draw.uniform(0.02, 0.98))
    if kind == "few descriptors":
        return Fault(kind, amount=draw.randint(*DESCRIPTORS))
    target = draw.choice([name for name in targets if kind != "hang" or name in ("rank", "reader")])
    by = draw.choice(("progress", "progress", "seconds")) if progress else "seconds"
    return Fault(kind, target, draw.uniform(0.02, 0.98), by, draw.uniform(*PAUSE_SECONDS))


def victims(fault: Fault, first: int, mark: bytes, draw: random.Random) -> list[int]:
    """The processes that a signal is for; none if there is no such process (yet, or any more)."""
    roles = {pid: role(pid, first) for pid in marked(mark)}
    chosen = [pid for pid, named in roles.items() if fault.target in ("all", named)]
    return chosen if fault.target == "all" else [draw.choice(chosen)] if chosen else []


def role(pid: int, first: int) -> str:
    """What a process of a command does."""
    if pid == first:
        return "first"
    if "genre_dist.stream.worker" in command_of(pid):
        return "reader"
    return "rank" if any(entry.startswith(b"RANK=") for entry in environment_of(pid)) else "child"


def strike(fault: Fault, pids: list[int]) -> None:
    """Send the signal; after a pause, go on."""
    number = signal.SIGSTOP if fault.kind in ("pause", "hang") else signal.Signals[fault.kind]
    send(number, pids)
    if fault.kind == "pause":
        time.sleep(fault.amount)
        send(signal.SIGCONT, pids)


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def limited(command: list[str], limits: str) -> list[str]:
    """A command, under torchrun its ranks, under limits of the shell's, such as `ulimit -n 64`."""
    at = command.index(RANKS_COMMAND) + 1 if RANKS_COMMAND in command else 0
    shell = ["bash", "-c", f'{limits}; exec "$@"', "limited"] if limits else []
    return [*command[:at], *shell, *command[at:]]


class Disk:
    """A folder, if asked for on a disk of its own whose size can be set.

    Without the right to mount one, files have a largest size instead.
    """

    def __init__(self, folder: Path, own: bool) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "chaos", str(folder)]
        self.mounted = own and subprocess.run(mount, capture_output=True).returncode == 0

    def leave_room(self, size: int) -> str:
        """Leave so many bytes beside what is there; returns the limit under which a command has to run instead."""
        if not self.mounted:
            return f"ulimit -f {-(-size // 1024)}"
        at = os.statvfs(self.folder)
        self._resize(str((at.f_blocks - at.f_bfree) * at.f_frsize + size))
        return ""

    def leave_plenty(self) -> None:
        if self.mounted:
            self._resize(PLENTY)

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@contextlib.contextmanager
def disk(folder: Path, own: bool) -> Iterator[Disk]:
    """A disk that is there for a block."""
    made = Disk(folder, own)
    try:
        yield made
    finally:
        made.close()
