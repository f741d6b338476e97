"""Tasks of a study that need no film: they note what they do, and wait for each other's notes."""

import sys
from pathlib import Path

from genre_dist.study.resources import Resources
from genre_dist.study.tasks import Task

# notes that it began, waits for what it is told to, notes that it ended, or that it was asked to stop
TASK = """
import os, signal, sys, time
from pathlib import Path
folder, name, awaited = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
signal.signal(signal.SIGTERM, lambda *_: ((folder / f"{name}.asked").touch(), sys.exit(75)))
(folder / f"{name}.environment").write_text(repr(dict(os.environ)))
(folder / f"{name}.began").touch()
print("this is", name, flush=True)
deadline = time.monotonic() + 60
while not all((folder / each).exists() for each in awaited):
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.01)
(folder / f"{name}.ended").touch()
"""


def task(folder: Path, name: str, *awaited: str, after: tuple[str, ...] = (), processes: int = 1) -> Task:
    """A task that ends when these notes are there. It is a training, so it takes GPUs."""
    command = [sys.executable, "-c", TASK, str(folder), name, *awaited]
    return Task(name, lambda: command, processes, folder / name, lambda: False, after)


def failing(folder: Path, name: str, *awaited: str, code: int) -> Task:
    command = [sys.executable, "-c", f"{TASK}\nprint('no film has a poster')\nsys.exit({code})", str(folder), name]
    return Task(name, lambda: [*command, *awaited], 1, folder / name, lambda: False)


def resources(parallel: int, chain: list[Task], *gpus: str) -> Resources:
    return Resources(parallel, chain, gpus, cores=8)
