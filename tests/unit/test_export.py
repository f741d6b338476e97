"""`genre-dist export`: a model is taken out of a run, finished or not, and predicts as it did there."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import options, rows
from safetensors.torch import load_file
from small_disk import small_disk

from genre_dist import cli
from genre_dist.inference.trained_model import load_run
from genre_dist.lock import one_writer
from genre_dist.train import main

pytestmark = pytest.mark.slow  # whole runs

STEPS = 6
RUN = (
    *("--model.poster.arch", "none", "--data.global_batch", 16, "--train.steps", STEPS, "--optim.text_lr", 0.3),
    *("--train.eval_every_steps", 2, "--checkpoint.every_steps", 2, "--checkpoint.keep", 1),
    *("--checkpoint.best_metric", "loss"),
)


@pytest.fixture(scope="module")
def run(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    assert main(options(sample_shards, folder, *RUN)) == 0
    return folder


@pytest.fixture
def unfinished(run: Path, tmp_path: Path) -> Path:
    """The run as it is before its end."""
    folder = Path(shutil.copytree(run, tmp_path / "unfinished"))
    for name in ("model.safetensors", "model.json", "vocabulary.txt", "thresholds.json"):
        (folder / name).unlink()
    return folder


def export(run: Path, out: Path, *more: str) -> Path:
    assert cli.main(["export", str(run), "--out", str(out), *more]) == 0
    return out


def predictions(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["predict", str(folder), "--overview", "a detective hunts a ghost in the snow"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_runs_model_predicts_and_is_judged_as_in_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(run, tmp_path / "out")
    assert f"after step {STEPS}" in capsys.readouterr().out
    assert predictions(out, capsys) == predictions(run, capsys)
    assert cli.main(["evaluate", str(out), "--split", "val"]) == 0
    told = [json.loads((folder / "metrics-val.json").read_text()) for folder in (out, run)]
    assert told[0]["loss"] == pytest.approx(told[1]["loss"])


def test_an_unfinished_run_gives_its_newest_checkpoint(
    run: Path, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(unfinished, tmp_path / "out")
    # its last checkpoint is that of the end; thresholds, by which genres are named, come with a finished run only
    assert predictions(out, capsys).replace("  named", "") == predictions(run, capsys).replace("  named", "")
    for name in ("model.json", "vocabulary.txt"):
        assert (out / name).read_bytes() == (run / name).read_bytes()


def test_the_best_is_the_checkpoint_of_the_best_evaluation(run: Path, tmp_path: Path) -> None:
    losses = {row["step"]: row["loss"] for row in rows(run, "val")}
    assert sorted(losses) == [2, 4, 6]
    best = min(losses, key=lambda step: losses[step])
    out = export(run, tmp_path / "out", "--which", "best")
    assert load_run(out, torch.device("cpu")).metadata["step"] == best
    weights, last = load_file(out / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(weights[name], last[name]) for name in last) == (best == STEPS)
    assert cli.main(["evaluate", str(out), "--split", "val"]) == 0
    assert json.loads((out / "metrics-val.json").read_text())["loss"] == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.parametrize(
    ("spoil", "more", "told"),
    [
        (lambda run: (run / "config.yaml").unlink(), [], "not a run"),
        (lambda run: shutil.rmtree(run / "checkpoints"), [], "no whole checkpoint yet"),
        (lambda run: [path.unlink() for path in run.glob("checkpoints/*/COMPLETE")], [], "damaged"),
        (lambda run: (run / "checkpoints" / "best.json").unlink(), ["--which", "best"], "checkpoint.best_metric"),
        (lambda run: None, ["--out", "{run}"], "is not empty"),
        (lambda run: None, ["--shards", "{run}"], "genre-dist pack"),
    ],
    ids=["no run", "nothing saved", "all damaged", "no best one", "a folder in use", "no shards"],
)
def test_what_cannot_be_exported_is_one_line(
    spoil: object, more: list[str], told: str, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(spoil)
    spoil(unfinished)
    capsys.readouterr()
    arguments = ["export", str(unfinished), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, *(word.format(run=unfinished) for word in more)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()


def test_other_shards_than_the_runs_are_refused(
    unfinished: Path, sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from genre_dist.packing.pack import pack

    pack(sample_catalogue, tmp_path / "others", size=72, quality=70, shard_size=50, workers=1)
    arguments = ["export", str(unfinished), "--out", str(tmp_path / "out"), "--shards", str(tmp_path / "others")]
    assert cli.main(arguments) == 2
    assert "other data" in capsys.readouterr().err


# --- its card


def test_the_card_has_the_figures_of_the_finished_model_and_none_for_a_checkpoint(run: Path, tmp_path: Path) -> None:
    told = json.loads((run / "metrics-test.json").read_text())
    card = (export(run, tmp_path / "out", "--license", "cc-by-4.0") / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: genre_dist\n")
    assert f"| test | {told['films']} | micro F1 | {told['micro_f1']:.3f} (" in card
    assert f"| steps | {STEPS}, the last in epoch 1 |" in card
    assert "| devices | 1 x cpu |" in card
    last = (export(run, tmp_path / "last", "--which", "last") / "README.md").read_text()
    assert f"The weights are those of the newest checkpoint, after step {STEPS}." in last
    assert "There are no predictions of these weights" in last
    assert "| micro F1 |" not in last


def test_without_its_shards_a_finished_model_is_exported_and_their_counts_are_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(re.sub("shards: .*", "shards: gone", config))
    card = (export(moved, tmp_path / "out") / "README.md").read_text()
    assert "the numbers of films are not stated here" in card
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "name the shards with --shards" in line


def test_shards_that_are_named_for_the_counts_must_be_those_of_the_model(
    run: Path, shards_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((shards_copy / "manifest.json").read_text())
    manifest["shards"].pop()
    (shards_copy / "manifest.json").write_text(json.dumps(manifest))
    arguments = ["export", str(run), "--out", str(tmp_path / "out"), "--shards", str(shards_copy)]
    assert cli.main(arguments) == 2
    assert "holds other data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("licence", ["", " ", "mit\nlicense: other"])
def test_a_licence_is_a_name_in_one_line(
    licence: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(run), "--out", str(tmp_path / "out"), "--license", licence]) == 2
    assert "--license takes a name in one line" in capsys.readouterr().err


def test_a_model_without_thresholds_names_at_one_half_and_a_note_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(run, tmp_path / "out", "--which", "last")
    capsys.readouterr()
    assert cli.main(["predict", str(out), "--overview", "a detective hunts a ghost in the snow"]) == 0
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line == (
        f"no thresholds were fitted: genres are named at one half (`genre-dist evaluate {out} --split val` fits some)"
    )
    named = {line.split("%  ")[1] for line in said.out.splitlines() if line.endswith("named")}
    above = {line.split("%  ")[1] for line in said.out.splitlines() if float(line.split("%")[0]) > 50}
    assert named == above


def test_a_readme_of_somebodys_own_is_left_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("mine")
    assert cli.main(["export", str(run), "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"


# --- what does not belong together, and what is cut short


def test_a_vocabulary_in_another_order_is_told_wherever_it_would_be_used(
    run: Path, unfinished: Path, shards_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each id would mean another word: everything would run, and say something wrong."""
    words = (shards_copy / "vocabulary.txt").read_text().splitlines()
    swapped = "\n".join([*words[:2], *reversed(words[2:])]) + "\n"
    (shards_copy / "vocabulary.txt").write_text(swapped)
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "vocabulary.txt").write_text(swapped)
    out = ["--out", str(tmp_path / "out")]
    for command, path in (
        (["predict", str(broken), "--overview", "a detective"], broken),
        (["export", str(broken), *out], broken),
        (["export", str(unfinished), *out, "--shards", str(shards_copy)], shards_copy),
    ):
        capsys.readouterr()
        assert cli.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path / 'vocabulary.txt'}: not the vocabulary" in line
    assert main(options(shards_copy, tmp_path / "new", *RUN)) == 2
    assert f"{shards_copy / 'vocabulary.txt'}: not the vocabulary" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_changed_byte_of_a_model_is_told_where_it_is_used(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    content = bytearray((broken / name).read_bytes())
    at = content.index(b"Drama") if name == "model.json" else len(content) - 9
    content[at] ^= 1
    (broken / name).write_bytes(content)
    for command in (["predict", str(broken), "--overview", "x"], ["export", str(broken), "--out", str(tmp_path / "o")]):
        capsys.readouterr()
        assert cli.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(broken / name) in line
    assert not (tmp_path / "o").exists()


def test_a_model_of_an_older_version_without_checksums_predicts_as_it_did(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = Path(shutil.copytree(run, tmp_path / "old"))
    for name, new in (("model.json", ["sha256", "settings", "weights_sha256"]), ("thresholds.json", ["sha256"])):
        told = json.loads((old / name).read_text())
        (old / name).write_text(json.dumps({key: value for key, value in told.items() if key not in new}))
    assert predictions(old, capsys) == predictions(run, capsys)


def test_a_folder_that_is_being_written_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_writer(tmp_path / "out"):
        capsys.readouterr()
        assert cli.main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
        assert f"being written by process {os.getpid()}" in capsys.readouterr().err
    export(run, tmp_path / "out")


def test_the_weights_are_on_the_disk_before_they_get_their_name(
    unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def noting(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    out = export(unfinished, tmp_path / "out")
    for name in ("model.safetensors", "vocabulary.txt", "model.json", "config.yaml"):
        status = (out / name).stat()
        assert (status.st_ino, status.st_size) in synced, name
        assert status.st_mode == (out / "config.yaml").stat().st_mode, name


@pytest.mark.parametrize("finished", [True, False])
def test_on_a_full_disk_an_export_is_one_line_and_done_again_in_the_same_folder(
    finished: bool, run: Path, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = run if finished else unfinished, tmp_path / "out"
    capsys.readouterr()
    with small_disk(20_000):  # the configuration has room, the weights have none
        assert cli.main(["export", str(source), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.safetensors" in line
    assert {path.name for path in out.iterdir()} <= {"config.yaml", "thresholds.json", "README.md", ".lock"}
    (out / "model.safetensors.host-1-00000000.tmp").touch()  # as of a kill
    export(source, out)
    assert json.loads((out / "model.json").read_text())["step"] == STEPS
    assert cli.main(["export", str(source), "--out", str(out)]) == 2  # it is whole now
