"""Folders that all tests share: made by whoever needs one first, also among pytest-xdist's workers."""

import fcntl
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(request: pytest.FixtureRequest, name: str, make: Callable[[Path], object], what: str = "") -> Path:
    """The folder of this name, as `make` leaves it, for the session and all its workers. Read only.

    `what` is told to the terminal before it is made: for what takes long.
    """
    root: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with open(root / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists():
            if what:
                tell(request.config, what)
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed here
            make(folder)
            done.touch()
    return folder


def tell(config: pytest.Config, what: str) -> None:
    """A line to the terminal while the tests run, from a worker of pytest-xdist too."""
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)
