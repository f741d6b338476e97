"""One attack: a command is started and something happens to it, perhaps again; then it is left alone, to its end."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import laws
from faults import Disk, Fault, disk, draw_fault, limited, role, send, strike, victims
from helpers import Processes, alive
from stages import HANG_SECONDS, Reference, Stage

LONGEST_SECONDS = 120.0
"""How much longer than ten undisturbed starts one may take before it counts as hanging."""
NOTICE_SECONDS = HANG_SECONDS + 45.0
"""After so long no rank may still wait for a stopped process; torchrun itself kills a stopped rank after 30 s."""


class Report(NamedTuple):
    """What was done and what was lost."""

    number: int
    stage: str
    happened: list[str]
    lost: list[str]
    seconds: float

    def __str__(self) -> str:
        verdict = "LOST" if self.lost else "held"
        told = f"{self.number:4} {self.stage:8} {verdict} {self.seconds:6.1f} s  {'; '.join(self.happened)}"
        return "\n".join((told, *(f"     lost: {line}" for line in self.lost)))


def attack(stage: Stage, reference: Reference, number: int, seed: int, folder: Path) -> Report:
    """Attack a stage as this number of this seed says, and check the laws. After a loss its folder stays."""
    began, draw = time.monotonic(), random.Random(f"attack {number} of seed {seed}")
    faults = [
        draw_fault(draw, stage.faults, stage.targets, bool(stage.progress)) for _ in range(draw.choice((1, 1, 1, 2, 3)))
    ]
    happened: list[str] = []
    lost: list[str] = []
    with disk(folder / "out", own=any(fault.kind == "full disk" for fault in faults)) as place:
        stage.prepare(place.folder)
        command = Command(stage, reference, place, draw)
        for start, fault in enumerate((*faults, None), 1):
            told, broken = command.live(fault, folder / f"start{start}")
            happened.append(told)
            lost += [f"start {start}: {line}" for line in broken]
        lost += laws.same_result(place.folder, reference.contents)
        if lost and place.mounted:
            shutil.copytree(place.folder, folder / "lost")
    if not lost:
        shutil.rmtree(folder)
    return Report(number, stage.name, happened, lost, time.monotonic() - began)


class Command(NamedTuple):
    """A stage's command at one place, started again and again."""

    stage: Stage
    reference: Reference
    place: Disk
    draw: random.Random

    def live(self, fault: Fault | None, log: Path) -> tuple[str, list[str]]:
        """One start, and what happens to it; returns that in words, and what was lost."""
        mark = f"CHAOS={log}".encode()
        with Processes(log) as processes:
            command = limited(self.stage.command(self.place.folder), self._limits(fault))
            child = processes.start(command, CHAOS=str(log))
            struck = self._strike(fault, child.pid, mark) if fault and fault.is_signal else []
            stopped = struck if fault and fault.kind == "hang" else []
            broken = _wait(child, stopped, 10 * self.reference.seconds + LONGEST_SECONDS, mark)
            broken += laws.nothing_runs(mark)
            send(signal.SIGKILL, list(laws.marked(mark)))
            said = processes.output()
        code = child.wait()
        machine = fault is not None and not fault.is_signal
        broken += laws.ended_as_promised(code, said, _allowed(fault, bool(struck)), error_expected=machine)
        if stopped and code != 0:
            broken += laws.hang_is_named(said, fault.target, stopped[0])
        late = " (too late)" if fault and fault.is_signal and not struck else ""
        return f"{fault or 'left alone'}{late} -> {code}", broken

    def _limits(self, fault: Fault | None) -> str:
        """Make the disk as large as this start may have it; returns the shell's limits for the command."""
        self.place.leave_plenty()
        if fault and fault.kind == "full disk":
            return self.place.leave_room(int(fault.amount * self.reference.written))
        return f"ulimit -n {fault.amount:.0f}" if fault and fault.kind == "few descriptors" else ""

    def _strike(self, fault: Fault, first: int, mark: bytes) -> list[int]:
        """Wait for the moment and strike; returns the processes hit, none if the command was over before."""
        began = time.monotonic()
        while alive(first):
            if fault.by == "progress":
                share = self.stage.done(self.place.folder) / self.reference.done
            else:
                share = (time.monotonic() - began) / self.reference.seconds
            if share >= fault.moment and (pids := victims(fault, first, mark, self.draw)):
                strike(fault, pids)
                return pids
            time.sleep(0.005)
        return []


def _wait(child: subprocess.Popen[bytes], stopped: list[int], seconds: float, mark: bytes) -> list[str]:
    """Wait for the end. What was stopped for good goes on once the others have noticed."""
    broken: list[str] = []
    if stopped:
        try:
            child.wait(NOTICE_SECONDS)
        except subprocess.TimeoutExpired:
            waiting = [pid for pid in laws.marked(mark) if role(pid, child.pid) == "rank" and pid not in stopped]
            if waiting and alive(stopped[0]):
                broken.append(f"{len(waiting)} ranks still wait {NOTICE_SECONDS:.0f} s after the stop")
            send(signal.SIGCONT, stopped)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        broken.append(f"it still runs after {seconds:.0f} s")
        send(signal.SIGKILL, list(laws.marked(mark)))
    return broken


def _allowed(fault: Fault | None, struck: bool) -> tuple[int, ...]:
    """The exit codes that a start may end with."""
    if fault is None or fault.kind == "pause" or (fault.is_signal and not struck):
        return (0,)
    if not fault.is_signal:
        return (0, 1, 2)
    if fault.kind == "hang":
        return (0, 1, 70)
    own = (-signal.Signals[fault.kind],) if fault.target in ("first", "all") else ()
    return (*laws.EXIT_CODES, *own)
