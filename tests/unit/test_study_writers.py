"""The folders that evaluate, compare, explore, baseline, explain and study write: one writer, whole files."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import options, snapshot
from study_runs import drawn_labels, drawn_logits, write_evaluation

from genre_dist import cli
from genre_dist.lock import FILE as LOCK
from genre_dist.lock import one_writer
from genre_dist.train import main as train_main

pytestmark = pytest.mark.slow  # whole runs

SMALL = Path(__file__).parents[2] / "configs" / "study_small.yaml"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders with what an evaluation leaves."""
    folder = tmp_path_factory.mktemp("evaluated")
    labels = drawn_labels(60)
    for skill, name in enumerate(("a", "b")):
        for split in ("val", "test"):
            write_evaluation(folder / name, split, np.arange(60), drawn_logits(labels, skill, 0), labels)
    return [folder / "a", folder / "b"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sample_shards: Path) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train_main(options(sample_shards, folder, "--data.global_batch", 32, "--train.steps", 1)) == 0
    return folder


# --- one writer


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["evaluate", "compare", "explore", "baseline", "explain", "study"])
def test_a_second_writer_is_refused_by_the_lock_before_it_reads_anything(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text("")
    commands = {
        "evaluate": [str(out)],
        "compare": ["nowhere", "--out", str(out)],
        "explore": ["nowhere", "--out", str(out)],
        "baseline": ["nowhere", "--out", str(out)],
        "explain": ["nowhere", "--out", str(out)],
        "study": ["--config", str(SMALL), "--out", str(out)],
    }
    with one_writer(out):
        assert cli.main([verb, *commands[verb]]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"process {os.getpid()} on {os.uname().nodename}" in line
        assert sorted(path.name for path in out.iterdir()) == [LOCK, "config.yaml"]


def test_who_is_refused_by_the_lock_has_not_imported_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from genre_dist.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    (tmp_path / "config.yaml").write_text("")
    with one_writer(tmp_path):
        ended = subprocess.run(
            [sys.executable, "-c", code, "evaluate", str(tmp_path)], capture_output=True, check=False
        )
    assert ended.returncode == 2, ended.stderr.decode()


def test_a_baseline_of_one_kind_and_all_of_them_do_not_write_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_writer(tmp_path / "out" / "svm_bow"):
        assert cli.main(["baseline", "nowhere", "--out", str(tmp_path / "out")]) == 2
    assert "svm_bow is being written by process" in capsys.readouterr().err


def test_what_a_killed_writer_left_is_removed(evaluated: list[Path], tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = tmp_path / f"index.html.{os.uname().nodename[:64]}-{int(dead.stdout)}-0123abcd.tmp"
    left.write_text("half")
    assert compare(evaluated, tmp_path) == 0
    assert not left.exists()


# --- whole or absent


def compare(runs: list[Path], out: Path) -> int:
    return cli.main(["compare", *map(str, runs), "--out", str(out), "--resamples", "5"])


class FullDisk:
    """Has room for some files more, each of which counts when it is finished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10**9
        self._fsync = os.fsync
        monkeypatch.setattr("genre_dist.atomic.os.fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        self._fsync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[FullDisk]:
    return FullDisk(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["evaluate", "compare", "explore", "baseline", "explain"])
def test_a_full_disk_leaves_whole_files_and_the_next_start_goes_on(
    verb: str,
    evaluated: list[Path],
    run: Path,
    sample_shards: Path,
    tmp_path: Path,
    disk: FullDisk,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = run if verb == "evaluate" else tmp_path / "out"
    command = {
        "evaluate": ["evaluate", str(run), "--split", "val"],
        "compare": ["compare", *map(str, evaluated), "--out", str(out), "--resamples", "5"],
        "explore": ["explore", str(sample_shards), "--out", str(out)],
        "baseline": ["baseline", str(sample_shards), "--kind", "nb_bow", "--out", str(out), "--workers", "1"],
        "explain": ["explain", str(run), "--count", "1", "--genres", "1", "--no_ablation", "--out", str(out)],
    }[verb]
    for room in (0, 2):
        before = snapshot(out) if out.exists() else {}
        disk.room = room
        assert cli.main(command) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        assert str(out) in line
        after = snapshot(out) if out.exists() else {}
        assert not [name for name in after if name.endswith(".tmp")]
        assert all(after[name] for name in after if name != LOCK), "an empty file"
        assert len(after.keys() - before.keys() - {LOCK}) <= room
    disk.room = 10**9
    assert cli.main(command) == 0


@pytest.mark.parametrize("verb", ["compare", "explore", "baseline", "explain", "study"])
def test_out_being_a_file_is_told_in_one_line(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    given = ["--config", str(SMALL)] if verb == "study" else ["nowhere"]
    assert cli.main([verb, *given, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(out) in line
    assert out.read_text() == "mine"
