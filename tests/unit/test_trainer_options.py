"""What people expect of a trainer, as users start it: early stopping, EMA, unfreezing, traces, determinism."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import pytest
import torch
from helpers import losses, options, rows, snapshot, tensors_of
from safetensors.torch import load_file

from genre_dist.train import main
from genre_dist.training.wandb_files import history

pytestmark = pytest.mark.slow

RUN = (
    *("--data.global_batch", 16, "--data.workers", 0, "--run.seed", 3, "--optim.schedule", "constant"),
    *("--optim.warmup_steps", 0, "--train.eval_every_steps", 2),
)
# a learning rate of 0: no evaluation is better than the first
STUCK = ("--optim.text_lr", 0, "--optim.poster_lr", 0, "--optim.heads_lr", 0, "--model.poster.batch_norm", "eval")


# --- early stopping


@pytest.fixture(scope="module")
def stopped(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that could not improve, and was shown in every view; what it said lies beside it."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    early = ("--train.stop_metric", "micro_f1", "--train.stop_patience", 2, "--train.steps", 20)
    views = ("--tracking.wandb", "offline", "--tracking.tensorboard", "true", "--tracking.ranks_every_steps", 3)
    looked_into = ("--train.profile_steps", "2:3", "--train.memory_snapshot", "true")
    said = io.StringIO()
    with redirect_stdout(said):
        assert main(options(sample_shards, run, *RUN, *STUCK, *early, *views, *looked_into)) == 0
    (run.parent / "said.txt").write_text(said.getvalue())
    return run


def test_a_run_that_does_not_improve_ends_early_as_a_finished_one_and_says_why(stopped: Path) -> None:
    assert list(losses(stopped)) == [1, 2, 3, 4, 5, 6]
    assert [(row["kind"], row["step"]) for row in rows(stopped, None) if row["kind"] != "train"] == [
        *(("val", 2), ("val", 4), ("val", 6), ("test", 6), ("end", 6)),
    ]
    assert (
        "val micro_f1 has not improved in 2 evaluations; it was best after step 2" in rows(stopped, "end")[0]["reason"]
    )
    assert json.loads((stopped / "model.json").read_text())["step"] == 6
    assert (stopped / "predictions-val.parquet").exists()


def test_started_again_it_is_finished_and_with_more_patience_it_goes_on(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(stopped) | {"config.yaml": b""}
    again = ["--config", str(stopped / "config.yaml"), "--tracking.wandb", "off", "--tracking.tensorboard", "false"]
    assert main(again) == 0
    assert "is finished: all 6 steps are done" in capsys.readouterr().out
    assert snapshot(stopped) | {"config.yaml": b""} == before
    assert main([*again, "--train.stop_patience", "3", "--run.max_minutes", "1e-9"]) == 75  # stopped in between
    assert main([*again, "--train.stop_patience", "3", "--run.max_minutes", "null"]) == 0
    assert list(losses(stopped)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["step"] for row in rows(stopped, "end")] == [8]
    assert [row["step"] for row in rows(stopped, "val")] == [2, 4, 6, 8]


def test_the_profiled_steps_leave_a_trace(stopped: Path) -> None:
    trace = json.loads((stopped / "profile" / "trace-steps-2-3-rank-0.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum("AdamW.step" in name and "Optimizer.step" in name for name in names) >= 2
    assert "aten::convolution" in names


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_snapshot_of_a_memory_that_is_not_there_is_one_line(stopped: Path) -> None:
    told = (stopped.parent / "said.txt").read_text().splitlines()
    assert [line for line in told if "snapshot" in line] == [
        "train.memory_snapshot is left out: it shows what fills a GPU's memory, and this is a cpu"
    ]
    assert not list((stopped / "profile").glob("memory*"))


def test_every_rank_tells_what_it_uses(stopped: Path) -> None:
    told = {row["step"]: row for row in rows(stopped) if "rank_memory_bytes" in row}
    assert list(told)[:2] == [3, 6]
    assert told[3]["rank_memory_bytes"][0] > 1e7
    assert told[3]["rank_cpu_percent"][0] > 0


def test_wandb_shows_films_with_poster_overview_genres_and_prediction(stopped: Path) -> None:
    shown = [row for row in history(stopped) if "val/films/path" in row]
    assert [row["global_step"] for row in shown] == [2, 4, 6]
    table = json.loads(next(stopped.glob(f"wandb/*/files/{shown[0]['val/films/path']}")).read_text())
    assert table["columns"] == ["film", "poster", "overview", "genres", "predicted"]
    assert len(table["data"]) == 8
    _, poster, overview, genres, predicted = table["data"][0]
    assert poster == "Image"  # it lies in an artifact; the posters are also there by themselves
    posters = shown[0]["val/posters/filenames"]
    assert len(posters) == 8
    (segment,) = stopped.glob("wandb/offline-run-*")
    assert cv2.imread(str(segment / "files" / posters[0])).shape == (72, 72, 3)
    assert len(overview.split()) > 3
    assert genres
    assert "%" in predicted


# --- unfreezing, EMA, and a run that is continued


def test_parts_thaw_at_their_steps_and_a_continued_run_learns_the_same(sample_shards: Path, tmp_path: Path) -> None:
    thawing = (
        *("--model.text.frozen", "true", "--model.text.unfreeze_at", 4, "--model.poster.frozen", "true"),
        *("--model.poster.unfreeze_at", "{layers.1: 2, layers.0: 6, none: 8}", "--train.ema_decay", 0.9),
    )
    arguments = [*options(sample_shards, tmp_path / "whole", *RUN, *thawing), "--checkpoint.keep", "20"]
    arguments += ["--checkpoint.every_steps", "1", "--train.eval_every_steps", "9"]
    assert main([*arguments, "--train.steps", "9"]) == 0
    continued = [*arguments, "--run.dir", str(tmp_path / "continued")]
    for steps in (2, 5, 9):  # stops just before a part thaws, and in between
        assert main([*continued, "--train.steps", str(steps)]) == 0
    assert losses(tmp_path / "continued") == losses(tmp_path / "whole")
    saved = [tensors_of(tmp_path / run / "checkpoints" / "step-00000009") for run in ("continued", "whole")]
    assert saved[0].keys() == saved[1].keys()
    assert all(tensor.equal(saved[1][name]) for name, tensor in saved[0].items())

    steps = [tensors_of(tmp_path / "whole" / "checkpoints" / f"step-{step:08d}") for step in range(1, 10)]
    moves = {
        name: [n + 1 for n in range(1, 9) if not steps[n][f"model.{name}"].equal(steps[n - 1][f"model.{name}"])]
        for name in ("text.rnn.weight_ih_l0", "poster.network.layers.1.weight", "poster.network.layers.0.weight")
    }
    assert moves == {
        "text.rnn.weight_ih_l0": [5, 6, 7, 8, 9],
        "poster.network.layers.1.weight": [7, 8, 9],
        "poster.network.layers.0.weight": [9],
    }
    # what has not been trained yet has no optimizer state, and frozen BatchNorms count nothing
    assert not any("optimizer.text" in name for name in steps[3])
    assert any("optimizer.text" in name for name in steps[4])
    assert steps[7]["model.poster.network.layers.1.num_batches_tracked"] == 2
    # the average is what is exported
    exported = load_file(tmp_path / "whole" / "model.safetensors")
    assert exported["heads.0.0.weight"].equal(steps[8]["ema.heads.0.0.weight"])
    assert not exported["heads.0.0.weight"].equal(steps[8]["model.heads.0.0.weight"])


# --- determinism, and what is refused


def test_deterministic_runs_have_the_same_losses_and_leave_torch_as_it_was(sample_shards: Path, tmp_path: Path) -> None:
    for run in ("one", "two"):
        more = ("--train.deterministic", "true", "--train.steps", 4, "--model.text.dropout", 0.2)
        assert main(options(sample_shards, tmp_path / run, *RUN, *more, "--model.text.layers", 2)) == 0
        assert not torch.are_deterministic_algorithms_enabled()
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--model.text.frozen", "true", "--model.text.unfreeze_at", 3, "--parallel.strategy", "fsdp"), "unfreeze_at"),
        (("--train.ema_decay", 0.9, "--parallel.strategy", "zero3"), "train.ema_decay with zero3"),
        (("--train.ema_decay", 1), "train.ema_decay"),
        (("--train.profile_steps", "3"), "train.profile_steps"),
        (("--train.profile_steps", "5:3"), "train.profile_steps"),
        (("--train.stop_metric", "f1"), "train.stop_metric"),
    ],
)
def test_what_cannot_be_is_one_line_before_training(
    more: tuple[object, ...], named: str, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(sample_shards, tmp_path / "run", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not (tmp_path / "run").exists()
