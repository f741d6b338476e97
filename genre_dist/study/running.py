"""Running a study's tasks, each in its own process, as many at a time as the study has lanes."""

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
from genre_dist.study.study_file import load_study
from genre_dist.study.tasks import Task, tasks
from genre_dist.training.stopping import PREEMPTED, SIGNALS
from genre_dist.workers import usable_cores

LOOK_SECONDS = 0.2


def run_study(config: Path, out: Path, changes: Sequence[str], lock: Lock) -> int:
    """Run or continue a study: finished tasks are skipped, interrupted ones continue.

    Stages inherit the folder's lock, which is free when the last stage has ended. Returns 0, PREEMPTED if it was asked
    to stop (the same command continues it), 2 or 1 if a stage failed. Raises ValueError for a mistake in the
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
    """Run all tasks, `resources.parallel` at most at a time; returns as `run_study`.

    A stage that fails or stops ends the study: concurrent stages are asked to stop, and can be continued.
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
                    message = f"error: {child.task.name} ended with exit code {code}; {child.where_to_look()}"
                    print(message, file=sys.stderr, flush=True)
                    return 2 if code == 2 else 1
            if running.children:
                time.sleep(LOOK_SECONDS)
    return 0


class Running:
    """The finished, running and waiting tasks."""

    def __init__(self, chain: Sequence[Task], resources: Resources, out: Path, lock: Lock) -> None:
        self.resources, self.out, self.lock = resources, out, lock
        self.total, self.waiting = len(chain), list(enumerate(chain, 1))
        self.done: set[str] = set()
        self.children: list[tuple[int, Child, dict[str, str]]] = []

    def more(self) -> bool:
        return bool(self.waiting or self.children)

    def start(self) -> None:
        """Start the tasks that can start; finished ones are skipped. Raises ValueError as `Task.done` does."""
        for number, task in list(self.waiting):
            if len(self.children) == self.resources.parallel:
                return
            if not self.done.issuperset(task.after) or not self.resources.fits(task):
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
        """The tasks that have ended since the last call, with their exit codes."""
        for entry in list(self.children):
            number, child, share = entry
            if (code := child.exit_code()) is None:
                continue
            self.children.remove(entry)
            self.resources.give_back(share)
            name = child.task.name
            if code == 0:
                self.done.add(name)
                if self.resources.parallel > 1:
                    print(f"== {number}/{self.total} {name}: finished, {child.minutes:.1f} minutes", flush=True)
            yield child, code

    def stop(self) -> None:
        """Ask all running tasks to stop; call it again until they have."""
        for _, child, _ in self.children:
            child.stop()

    def close(self) -> None:
        """Stop all running tasks and wait for their ends."""
        while any(child.exit_code() is None for _, child, _ in self.children):
            self.stop()
            time.sleep(LOOK_SECONDS)


def started_as(task: Task) -> list[str]:
    """A task's command; torchrun starts several ranks."""
    if task.processes == 1:
        return task.command()
    python, *rest = task.command()
    return [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={task.processes}", *rest]


class Stopping:
    """Signal handlers that note a request to stop in `reason`."""

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
