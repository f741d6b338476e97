"""`genre-dist export`: a model is taken out of a run, finished or not, and predicts as it did there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import options, rows
from safetensors.torch import load_file

from genre_dist import cli
from genre_dist.study.run import load_run
from genre_dist.train import main

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
    assert load_run(out, torch.device("cpu")).facts["step"] == best
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
    from genre_dist.prepare.pack import pack

    pack(sample_catalogue, tmp_path / "others", size=72, quality=70, shard_size=50, workers=1)
    arguments = ["export", str(unfinished), "--out", str(tmp_path / "out"), "--shards", str(tmp_path / "others")]
    assert cli.main(arguments) == 2
    assert "other data" in capsys.readouterr().err
