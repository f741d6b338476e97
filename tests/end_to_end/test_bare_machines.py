"""A run where the machine lacks what most have: it does without, and learns the same."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import losses, options

from genre_dist.train import main

RUN = ("--model.poster.arch", "none", "--data.global_batch", 8, "--train.steps", 3, "--data.workers", 1)


@pytest.fixture(scope="module")
def learned(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    run = tmp_path_factory.mktemp("usual") / "run"
    assert main(options(sample_shards, run, *RUN)) == 0
    return losses(run)


@pytest.mark.parametrize(
    "without",
    [
        "unset HOME USER LOGNAME",
        "export HOME=/nowhere TMPDIR=/nowhere",
        "exec <&- >&- 2>&-",
        "ulimit -n 64",
        "umount -l /dev/shm",
    ],
)
def test_it_trains_without(without: str, learned: dict[int, float], sample_shards: Path, tmp_path: Path) -> None:
    training = [sys.executable, "-m", "genre_dist.train", *options(sample_shards, tmp_path / "run", *RUN)]
    own_mounts = ["unshare", "--mount"] if "umount" in without else []
    if own_mounts and subprocess.run([*own_mounts, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounts of its own are not allowed here")
    command = [*own_mounts, "bash", "-c", f"{without} && exec {shlex.join(training)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == learned
