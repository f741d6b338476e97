"""Frozen encoders compute every film once, and nobody can tell from the numbers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import Processes, losses, options, rows, snapshot, train, until

from genre_dist.stream.manifest import load_manifest
from genre_dist.train import main
from genre_dist.training import encode_once as encodings

FROZEN = ("--model.text.frozen", "true", "--model.poster.frozen", "true", "--data.crop_scale", "[1,1]")
FAST = ("--optim.heads_lr", 0.01, "--data.workers", 0)
BATCHES = ("--data.global_batch", 24, "--data.micro_batch", 6, "--data.by_length", 0.5)
SHORT = (*FROZEN, *FAST, *BATCHES, "--train.epochs", 2)

WRITER = """
import pathlib, sys
from genre_dist.lock import one_writer
with one_writer(pathlib.Path(sys.argv[1])):
    print(flush=True)
    input()
"""
KILLED_WRITER = """
import os, pathlib, signal, sys
from genre_dist.atomic import atomic_file
with atomic_file(pathlib.Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Runs(NamedTuple):
    """The same training, slow and fast: run folders by name."""

    folder: Path
    shards: Path

    def run(self, name: str) -> Path:
        return self.folder / name / "run"


@pytest.fixture(scope="module")
def runs(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Slow, and on encodings with one and two ranks, over shards with a damaged poster in train and in val."""
    folder = tmp_path_factory.mktemp("encodings")
    shards = Path(shutil.copytree(sample_shards, folder / "shards"))
    for split in ("train", "val"):
        damage_a_poster(shards, split)
    made = Runs(folder, shards)
    for name, world, cache in (("slow", 1, "off"), ("fast", 1, "auto"), ("two", 2, "on")):
        arguments = options(shards, made.run(name), *SHORT, "--train.cache_encodings", cache)
        if world == 1:
            assert main(arguments) == 0
        else:
            codes, output = train(folder / "log", world, [*arguments, "--data.workers", "1"])
            assert codes == [0] * world, output
    return made


def damage_a_poster(shards: Path, split: str) -> None:
    import io
    import tarfile

    shard = shards / load_manifest(shards).shards_of(split)[0].file
    data = bytearray(shard.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        member = next(member for member in tar if member.name.endswith(".jpg"))
    data[member.offset_data : member.offset_data + member.size] = b"\x2a" * member.size
    shard.write_bytes(data)


def cache(runs: Runs, name: str) -> Path:
    """The one folder of encodings beside a run."""
    (folder,) = (runs.folder / name / "encodings").iterdir()
    return folder


@pytest.mark.parametrize("name", ["fast", "two"])
def test_losses_of_every_step_are_those_of_the_slow_path(runs: Runs, name: str) -> None:
    slow, fast = losses(runs.run("slow")), losses(runs.run(name))
    assert list(fast) == list(slow)
    assert fast == pytest.approx(slow, rel=1e-4, abs=1e-4)
    assert min(slow.values()) < 0.9 * slow[1]  # the heads have learned something


@pytest.mark.parametrize("name", ["fast", "two"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_and_evaluations_are_those_of_the_slow_path(runs: Runs, name: str, split: str) -> None:
    slow, fast = (pq.read_table(runs.run(n) / f"predictions-{split}.parquet") for n in ("slow", name))
    assert fast["tmdb_id"].to_pylist() == slow["tmdb_id"].to_pylist()
    assert fast["labels"].to_pylist() == slow["labels"].to_pylist()
    np.testing.assert_allclose(fast["logits"].to_pylist(), slow["logits"].to_pylist(), atol=1e-4, rtol=1e-4)
    told = [json.loads((runs.run(n) / f"metrics-{split}.json").read_text()) for n in ("slow", name)]
    assert told[0]["left_out"] == told[1]["left_out"]
    assert told[0]["bad_samples"] == told[1]["bad_samples"] == (split == "val")


@pytest.mark.parametrize("name", ["fast", "two"])
def test_a_film_that_could_not_be_read_stays_out_of_training_and_is_named(runs: Runs, name: str) -> None:
    bad = [sum(row["bad_samples"] for row in rows(runs.run(n))) for n in ("slow", name)]
    assert bad == [2, 2]  # once an epoch
    noted = [(runs.run(n) / "faults.log").read_text().splitlines() for n in ("slow", name)]
    assert sorted(noted[0]) == sorted(noted[1])


def test_the_bytes_do_not_depend_on_who_computed_them_but_for_rounding(runs: Runs) -> None:
    one, two = (load_manifest(cache(runs, name)) for name in ("fast", "two"))
    assert one.folder.name == two.folder.name
    assert [(s.file, s.samples, s.bytes) for s in one.shards] == [(s.file, s.samples, s.bytes) for s in two.shards]
    assert one.fingerprint == two.fingerprint == load_manifest(runs.shards).fingerprint


@pytest.mark.parametrize("damage", [lambda data: data[:-1000], lambda data: data[:900] + b"\x7f" + data[901:]])
def test_nothing_is_computed_twice_and_only_what_is_damaged_again(
    damage: Callable[[bytes], bytes], runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cache(runs, "fast"), tmp_path / "encodings" / cache(runs, "fast").name)
    before = snapshot(tmp_path / "encodings")
    assert main(options(runs.shards, tmp_path / "first", *SHORT, "--train.steps", 2)) == 0
    assert "(0 computed now)" in capsys.readouterr().out
    assert snapshot(tmp_path / "encodings") == before
    shard = sorted((tmp_path / "encodings").rglob("train-*.tar"))[0]
    shard.write_bytes(damage(shard.read_bytes()))
    assert main(options(runs.shards, tmp_path / "second", *SHORT, "--train.steps", 2)) == 0
    assert "(50 computed now)" in capsys.readouterr().out
    assert snapshot(tmp_path / "encodings") == before
    assert losses(tmp_path / "second") == losses(tmp_path / "first")


@pytest.mark.parametrize(
    "change",
    [
        ("--run.seed", 1),  # other random weights
        ("--data.max_tokens", 7),
        ("--data.image_size", 40),
    ],
)
def test_other_weights_or_another_view_of_the_films_never_meet_an_old_cache(
    runs: Runs, change: tuple[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cache(runs, "fast"), tmp_path / "encodings" / cache(runs, "fast").name)
    assert main(options(runs.shards, tmp_path / "run", *SHORT, "--train.steps", 1, *change)) == 0
    assert "(0 computed now)" not in capsys.readouterr().out
    assert len(list((tmp_path / "encodings").iterdir())) == 2


def test_a_run_goes_on_with_encodings_where_it_stopped_without(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(options(runs.shards, run, *SHORT, "--train.epochs", 1, "--train.cache_encodings", "off")) == 0
    assert main(options(runs.shards, run, *SHORT)) == 0
    slow = losses(runs.run("slow"))
    assert list(losses(run)) == list(slow)


# --- long work, and several runs


def test_encoding_may_take_longer_than_the_watchdogs_timeout(sample_shards: Path, tmp_path: Path) -> None:
    """Rank 0 is through long before rank 1, whose every batch is progress."""
    run = tmp_path / "run"
    more = ("--data.global_batch", 4, "--parallel.timeout_seconds", 10, "--train.steps", 1)
    arguments = options(sample_shards, run, *FROZEN, *FAST, *more, "--model.poster.arch", "bad_ranks:slow")
    codes, output = train(tmp_path / "log", 2, arguments, seconds=180)
    assert codes == [0, 0], output
    assert "no collective finished" not in output


@pytest.fixture
def other_run(runs: Runs, tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder of encodings that another process, another run, is writing until its input ends."""
    folder = tmp_path / "encodings" / cache(runs, "fast").name
    with subprocess.Popen([sys.executable, "-c", WRITER, folder], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield folder, process
        process.kill()


def test_a_run_waits_for_the_lock_of_another_that_writes_the_same_encodings_and_uses_them(
    runs: Runs, other_run: tuple[Path, subprocess.Popen[str]], tmp_path: Path
) -> None:
    folder, other = other_run
    assert other.stdin is not None
    with Processes(tmp_path / "log") as started:
        arguments = options(runs.shards, tmp_path / "run", *SHORT, "--train.steps", 2)
        started.fork("genre_dist.train", arguments)
        line = f"{folder} is being written by process {other.pid} on {os.uname().nodename}"
        until(lambda: line in started.output() or started.over(), 60, "the run to say that it waits")
        shutil.copytree(cache(runs, "fast"), folder, dirs_exist_ok=True, ignore=lambda *_: [".lock"])
        other.stdin.close()
        started.succeed()
        assert "(0 computed now)" in started.output()
        assert started.output().count("waiting for it") == 1


def test_a_run_that_waits_for_encodings_can_be_stopped(
    runs: Runs, other_run: tuple[Path, subprocess.Popen[str]], tmp_path: Path
) -> None:
    with Processes(tmp_path / "log") as started:
        started.start_ranks(2, options(runs.shards, tmp_path / "run", *SHORT, "--train.steps", 2))
        until(lambda: "waiting for it" in started.output() or started.over(), 60, "the run to say that it waits")
        started.children[1].terminate()
        assert started.wait() == [75, 75]


def test_what_a_killed_run_left_among_the_encodings_is_removed(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encodings" / cache(runs, "fast").name
    shutil.copytree(cache(runs, "fast"), folder)
    before = snapshot(folder)
    killed = [sys.executable, "-c", KILLED_WRITER, str(folder / "train-000000.tar")]
    assert subprocess.run(killed).returncode == -signal.SIGKILL
    assert len(snapshot(folder)) == len(before) + 1
    assert main(options(runs.shards, tmp_path / "run", *SHORT, "--train.steps", 2)) == 0
    assert snapshot(folder) == before


def test_killed_while_it_encodes_a_run_started_again_encodes_the_rest(runs: Runs, tmp_path: Path) -> None:
    arguments = [*options(runs.shards, tmp_path / "run", *SHORT, "--train.steps", 2)]
    with Processes(tmp_path / "log") as killed:
        killed.fork("genre_dist.train", arguments)
        until(lambda: any((tmp_path / "encodings").rglob("*.report.json")) or killed.over(), 90, "the first shard")
        killed.kill()
    assert main(arguments) == 0
    assert snapshot(tmp_path / "encodings") == snapshot(runs.folder / "fast" / "encodings")


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b'{"key": 1}', b"\xff", b'{"key": "KEY", "shard": {"file": "../../secret.tar"}}']
)
def test_a_shard_whose_report_is_damaged_is_made_again(
    runs: Runs, damage: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encodings" / cache(runs, "fast").name
    shutil.copytree(cache(runs, "fast"), folder)
    before = snapshot(folder)
    report = sorted(folder.glob("train-*.report.json"))[0]
    report.write_bytes(damage.replace(b"KEY", folder.name.encode()))
    assert main(options(runs.shards, tmp_path / "run", *SHORT, "--train.steps", 2)) == 0
    assert "(50 computed now)" in capsys.readouterr().out
    assert snapshot(folder) == before


# --- where it does not apply


def test_posters_that_are_cropped_are_encoded_anew_and_the_run_says_why(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(
        sample_shards, tmp_path / "run", *FROZEN[:-2], *FAST, "--data.global_batch", 24, "--train.steps", 1
    )
    assert main(arguments) == 0
    assert "computes the frozen encoders again: images are cropped" in capsys.readouterr().out
    assert not (tmp_path / "encodings").exists()


@pytest.mark.parametrize(
    ("more", "word"), [(FROZEN[:-2], "data.crop_scale [1, 1]"), (FROZEN[2:], "an encoder is trained")]
)
def test_a_cache_that_cannot_be_is_refused_before_training(
    more: tuple[str, ...], word: str, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(sample_shards, tmp_path / "run", *more, "--train.cache_encodings", "on")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line
    assert not (tmp_path / "run").exists()


def test_an_encoding_that_is_damaged_while_it_is_used_names_the_folder_to_delete(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encodings" / cache(runs, "fast").name
    shutil.copytree(cache(runs, "fast"), folder)
    save = encodings._save

    def damaging(*arguments: Any) -> None:
        save(*arguments)
        for shard in folder.glob("train-*.tar"):
            shard.write_bytes(bytes(shard.stat().st_size))

    monkeypatch.setattr(encodings, "_save", damaging)
    capsys.readouterr()
    assert main(options(runs.shards, tmp_path / "run", *SHORT)) == 2
    assert f"delete {folder}" in capsys.readouterr().err
