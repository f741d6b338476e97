"""Running a study's tasks, each in a process of its own: one after the other, or as many at a time as it has lanes."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType

from genre_dist.lock import Lock
from genre_dist.printable import printable
from genre_dist.study.child import Child
from genre_dist.study.resources import Resources, visible_gpus
from genre_dist.study.schema import load_study
from genre_dist.study.tasks import Task, tasks
from genre_dist.training.stopping import PREEMPTED, SIGNALS
from genre_dist.workers import usable_cores

LOOK_SECONDS = 0.2


def run_study(config: Path, out: Path, changes: Sequence[str], lock: Lock) -> int:
    """Run, or continue, a study: what is done is skipped, what was begun goes on.

    Stages inherit the folder's lock: it is free when the last of them has ended. Returns 0, PREEMPTED if it was asked
    to stop and can be continued by the same command, 2 or 1 if a stage failed. Raises ValueError for a mistake in the
    study before anything runs.
    """
    study = load_study(config, changes)
    chain = tasks(study, config.parent, out, study.group or config.stem)
    resources = Resources(study.lanes, chain, visible_gpus() if study.lanes > 1 else [], usable_cores())
    code = run_tasks(chain, resources, out, lock)
    if code == 0:
        print(f"finished: {printable(out / 'report' / 'index.html')}", flush=True)
    return code


def run_tasks(chain: Sequence[Task], resources: Resources, out: Path, lock: Lock) -> int:
    """Run tasks whose turn it is, `resources.parallel` at most at a time, until all are done; returns as `run_study`.

    A stage that fails or is stopped ends the study: those beside it are asked to stop, and can be continued.
    """
    with Stopping() as stopping, closing(Running(chain, resources, out, lock)) as running:
        while running.more():
            if stopping.reason is None:
                running.start()
            elif running.children:
                running.stop()
            else:
                print(f"stopped ({stopping.reason}); the same command goes on", flush=True)
                return PREEMPTED
            for child, code in running.ended():
                if stopping.reason or code == PREEMPTED:
                    why = stopping.reason or "the stage was asked to"
                    print(f"stopped in {child.task.name} ({why}); the same command goes on", flush=True)
                    return PREEMPTED
                if code != 0:
                    told = f"error: {child.task.name} ended with exit code {code}; {child.where_to_look()}"
                    print(told, file=sys.stderr, flush=True)
                    return 2 if code == 2 else 1
            if running.children:
                time.sleep(LOOK_SECONDS)
    return 0


class Running:
    """Which tasks are done, at work and still to come."""

    def __init__(self, chain: Sequence[Task], resources: Resources, out: Path, lock: Lock) -> None:
        self.resources, self.out, self.lock = resources, out, lock
        self.total, self.waiting = len(chain), list(enumerate(chain, 1))
        self.done: set[str] = set()
        self.children: list[tuple[int, Child, dict[str, str]]] = []

    def more(self) -> bool:
        return bool(self.waiting or self.children)

    def start(self) -> None:
        """Start what can be started; what is done already is passed over. Raises ValueError as `Task.done` does."""
        for number, task in list(self.waiting):
            if len(self.children) == self.resources.parallel:
                return
            if not self.done.issuperset(task.after) or not self.resources.has_room(task):
                continue
            self.waiting.remove((number, task))
            if task.done():
                print(f"== {number}/{self.total} {task.name}: done", flush=True)
                self.done.add(task.name)
                continue
            command, share = started_as(task), self.resources.take(task)
            log = self.out / "logs" / f"{task.name}.log" if self.resources.parallel > 1 else None
            print(f"== {number}/{self.total} {task.name}: {printable(shlex.join(command))}", flush=True)
            self.children.append((number, Child(task, command, self.lock, log, os.environ | share), share))

    def ended(self) -> Iterator[tuple[Child, int]]:
        """The tasks that have come to an end since the last call, each with its exit code."""
        for place in list(self.children):
            number, child, share = place
            if (code := child.exit_code()) is None:
                continue
            self.children.remove(place)
            self.resources.give_back(share)
            name = child.task.name
            if code == 0:
                self.done.add(name)
                if self.resources.parallel > 1:
                    print(f"== {number}/{self.total} {name}: finished, {child.minutes:.1f} minutes", flush=True)
            yield child, code

    def stop(self) -> None:
        """Ask all that is at work to stop; to be called again until it has."""
        for _, child, _ in self.children:
            child.stop()

    def close(self) -> None:
        """Have all that is at work stop, and wait for it."""
        while any(child.exit_code() is None for _, child, _ in self.children):
            self.stop()
            time.sleep(LOOK_SECONDS)


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
