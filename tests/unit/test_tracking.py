"""metrics.jsonl is the record; the console and W&B are views of it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from one_label import ARTICLES
from small_disk import small_disk
from wandb.proto.wandb_internal_pb2 import Record as StoredRecord

from genre_dist.config import Config, ModelConfig, PosterConfig, RunConfig, TextConfig, TrackingConfig
from genre_dist.config.files import parse_config
from genre_dist.training.metrics_log import MetricsLog, open_record
from genre_dist.training.views import Console, Example, _run_id, check_views, job_type, numbers
from genre_dist.training.wandb_files import history, records

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"


class Seen:
    """A view that remembers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.closed = False

    def show(self, row: dict[str, Any], told: dict[str, Any]) -> None:
        self.rows.append(row)
        self.told.append(told)

    def close(self) -> None:
        self.closed = True


def train_row(step: int, loss: float = 0.5) -> dict[str, Any]:
    return {
        **{"kind": "train", "step": step, "epoch": 0, "loss": loss, "grad_norm": 1.0, "samples": 8, "bad_samples": 0},
        **{"samples_per_second": 16.0, "step_seconds": 0.5, "data_wait": 0.1, "mfu": 0.0, "memory_bytes": 1},
    }


def val_row(step: int, kind: str = "val") -> dict[str, Any]:
    told = {"kind": kind, "step": step, "epoch": 0, "loss": 0.7, "micro_f1": 0.1, "macro_f1": 0.2}
    return told | {"mean_average_precision": 0.3, "data_wait": 0.0}


def written(path: Path) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record of steps 1 to 4 with an evaluation after steps 2 and 4, and of a final one."""
    path = tmp_path / "metrics.jsonl"
    record = MetricsLog(path, 0, 4, [])
    for row in (train_row(1), train_row(2), val_row(2), train_row(3), train_row(4), val_row(4), val_row(4, "test")):
        record.write(row)
    record.close()
    return path


def test_each_row_is_one_line_of_json_on_disk_at_once_and_shown_in_every_view(tmp_path: Path) -> None:
    views = [Seen(), Seen()]
    record = MetricsLog(tmp_path / "metrics.jsonl", 0, 2, list(views))
    for step in (1, 2):
        record.write(train_row(step))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == train_row(step)
        assert len(lines) == step
    record.close()
    assert all(view.rows == [train_row(1), train_row(2)] and view.closed for view in views)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_number_for_is_null(tmp_path: Path, number: float) -> None:
    record = MetricsLog(tmp_path / "metrics.jsonl", 0, 1, [])
    record.write(train_row(1, loss=number))
    record.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["loss"] is None


def test_resuming_drops_the_rows_after_the_step_it_resumes_from(path: Path) -> None:
    record = MetricsLog(path, 2, 4, [])
    record.write(train_row(3))
    record.close()
    assert written(path) == [("train", 1), ("train", 2), ("val", 2), ("train", 3)]


def test_resuming_from_the_last_step_makes_the_final_evaluations_again(path: Path) -> None:
    with open(path, "a") as file:
        file.write(
            json.dumps({"kind": "settings", "step": 4, "epoch": 0, "changes": {"optim.heads_lr": [1, 2]}}) + "\n"
        )
    MetricsLog(path, 4, 4, []).close()
    trained = [("train", 1), ("train", 2), ("val", 2), ("train", 3), ("train", 4)]
    assert written(path) == [*trained, ("settings", 4)]  # what has changed is not made again


def test_starting_from_nothing_keeps_what_was_there_in_files_of_its_own(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = path.read_bytes()
    for number in (1, 2):
        record = MetricsLog(path, 0, 4, [])
        aside = path.with_name(f"metrics-lost-{number}.jsonl")
        assert f"rows of before are kept in {aside}" in capsys.readouterr().out
        assert written(path) == []
        record.write(train_row(number))
        record.close()
    assert path.with_name("metrics-lost-1.jsonl").read_bytes() == before
    assert written(path.with_name("metrics-lost-2.jsonl")) == [("train", 1)]
    assert written(path) == [("train", 2)]


def test_a_record_of_which_nothing_is_dropped_is_not_written_again(path: Path) -> None:
    before, stat = path.read_bytes(), path.stat()
    MetricsLog(path, 4, 8, []).close()
    assert path.read_bytes() == before
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


@pytest.mark.parametrize(
    "line",
    [
        *('{"kind": "train", "step":', "[]", "7", '{"step": 1}', '{"kind": "val"}', '{"kind": "val", "step": "2"}'),
        *('{"kind": "train", "step": -1}', '{"kind": "train", "step": 1, "epoch": null}', "[" * 100_000),
    ],
    ids=range(9),
)
def test_a_line_that_is_no_row_is_told_with_its_number_and_nothing_is_dropped(path: Path, line: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 3 is no row") as caught:
        MetricsLog(path, 4, 8, [])
    assert str(caught.value).isprintable()
    assert path.read_bytes() == before


def test_on_a_full_disk_a_row_is_whole_or_absent_and_the_error_names_the_record(path: Path) -> None:
    record = MetricsLog(path, 4, 8, [])
    before = path.read_bytes()
    with small_disk(len(before) + 20), pytest.raises(OSError, match=r"goes on.*metrics\.jsonl"):
        record.write(train_row(5))
    assert path.read_bytes() == before
    record.write(train_row(5))
    record.close()
    assert written(path)[-1] == ("train", 5)


def test_what_changes_on_the_way_is_a_row_that_every_view_can_show(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = MetricsLog(path, 3, 8, [Console(8)])
    row = {"kind": "settings", "step": 4, "epoch": 0, "changes": {"optim.text_lr": (0.1, 0.2)}}
    record.write(row)
    record.close()
    assert "from step 4 on: optim.text_lr=0.2 (was 0.1)" in capsys.readouterr().out
    assert written(path)[-1] == ("settings", 4)
    record = MetricsLog(path, 3, 8, [])  # nothing of it was saved
    assert written(path)[-1] == ("train", 3)
    record.close()
    views = open_record(Config(tracking=TrackingConfig(wandb="off", tensorboard=True)), path.parent, 3, 8)
    views.write(row)
    views.close()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_cut_short_by_a_kill_is_dropped(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    record = MetricsLog(path, 4, 8, [])
    record.write(train_row(5))
    record.close()
    found = written(path)
    assert found[-1] == ("train", 5)
    assert ("val", 4) in found
    assert (("test", 4) in found) == (cut == 1)  # only the line's end was missing


def test_it_is_known_after_which_steps_the_split_was_evaluated(path: Path) -> None:
    record = MetricsLog(path, 3, 8, [])
    assert record.validated == {2}
    record.close()


def test_the_console_shows_a_row_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(10)
    console.show(train_row(3, loss=0.25), {})
    console.show(val_row(3), {})
    first, second = capsys.readouterr().out.splitlines()
    assert "step 3/10" in first
    assert "loss 0.2500" in first
    assert "data wait 10%" in first
    assert "0:00:03 left" in first  # 7 steps of half a second
    assert second.startswith("val after step 3")


def test_without_wandb_nothing_of_it_is_written(tmp_path: Path) -> None:
    config = Config(run=RunConfig(dir=str(tmp_path)), tracking=TrackingConfig(wandb="off"))
    open_record(config, tmp_path, 0, 1).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_row_that_is_there_is_not_written_again(path: Path) -> None:
    view = Seen()
    record = MetricsLog(path, 3, 8, [view])
    record.write(val_row(2))
    record.write(val_row(4), {"per_genre": {}})
    record.write(val_row(4))
    record.close()
    assert written(path) == [("train", 1), ("train", 2), ("val", 2), ("train", 3), ("val", 4)]
    assert [row["step"] for row in view.rows] == [4]
    assert view.told == [{"per_genre": {}}]


# --- what views draw


PER_GENRE = {"Drama": {"films": 3, "f1": 0.5, "average_precision": 0.4, "auc": None}}
FILM = Example(603, np.full((4, 4, 3), 99, np.uint8), "a hacker learns", "Action", "Action 90%")


def test_numbers_of_rows_ranks_and_genres_have_names_of_their_own() -> None:
    row = train_row(3) | {"rank_memory_bytes": [5.0, 7.0]}
    found = numbers(row, {})
    assert found["train/loss"] == 0.5
    assert (found["ranks/0/memory_bytes"], found["ranks/1/memory_bytes"]) == (5.0, 7.0)
    assert "train/kind" not in found
    found = numbers(val_row(3), {"per_genre": PER_GENRE})
    assert found["val_genres/f1/Drama"] == 0.5
    assert "val_genres/auc/Drama" not in found  # there is none


@pytest.mark.parametrize(
    ("text", "poster", "expected"),
    [
        (TextConfig(), PosterConfig(arch="none"), "text"),
        (TextConfig(arch="none"), PosterConfig(), "poster"),
        (TextConfig(frozen=True), PosterConfig(frozen=True), "frozen"),
        (TextConfig(), PosterConfig(), "end_to_end"),
        (TextConfig(frozen=True), PosterConfig(), "end_to_end"),
    ],
)
def test_the_job_type_tells_what_is_compared(text: TextConfig, poster: PosterConfig, expected: str) -> None:
    assert job_type(ModelConfig(text=text, poster=poster)) == expected


def test_tensorboard_holds_the_same_and_hides_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = Config(tracking=TrackingConfig(wandb="off", tensorboard=True))
    for start, end in ((0, 5), (3, 6)):
        record = open_record(config, tmp_path, start, 6)
        for step in range(start + 1, end + 1):
            record.write(train_row(step, loss=step / 10 + start))
        record.write(val_row(end), {"per_genre": PER_GENRE, "examples": [FILM]})
        record.close()
    told = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in told.Scalars("train/loss")}
    assert losses == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3, 4: 3.4, 5: 3.5, 6: 3.6})
    assert [event.step for event in told.Scalars("val_genres/f1/Drama")] == [6]
    assert [event.step for event in told.Images("val_films/603")] == [6]


def test_tensorboard_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'genre_dist\[tensorboard\]'"):
        check_views(Config(tracking=TrackingConfig(tensorboard=True)))


# --- W&B, offline


def stored(folder: Path, kind: str) -> list[Any]:
    """The records of one kind in a run's offline segments."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in records(path.read_bytes()):
            record = StoredRecord()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == kind:
                found.append(getattr(record, kind))
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A run's folder where W&B finds no key, so it is offline by itself."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    (tmp_path / "run").mkdir()
    yield tmp_path / "run"
    wandb.teardown()


def ended(record: MetricsLog) -> None:
    """Close a record, and W&B's process with it, which writes the last of its file then."""
    import wandb

    record.close()
    wandb.teardown()


def steps_of(folder: Path, kind: str) -> list[int]:
    return [row["global_step"] for row in history(folder) if f"{kind}/loss" in row]


@pytest.mark.slow
def test_an_offline_run_of_wandb_holds_the_same_losses_at_the_same_steps_after_a_resume_too(offline: Path) -> None:
    config = Config(run=RunConfig(dir=str(offline)), tracking=TrackingConfig(project="test"))
    record = open_record(config, offline, 0, 400)
    for step in range(1, 301):
        record.write(train_row(step, loss=1 / step))
    record.write(val_row(300), {"per_genre": PER_GENRE, "examples": [FILM]})
    ended(record)
    assert steps_of(offline, "train") == list(range(1, 301))

    # killed there, with what W&B had not yet written lost; the last checkpoint is of step 250
    (segment,) = offline.glob("wandb/offline-run-*/run-*.wandb")
    segment.write_bytes(segment.read_bytes()[: -segment.stat().st_size // 4])
    lost_from = steps_of(offline, "train")[-1]
    assert 100 < lost_from < 250  # otherwise the test shows less than it claims
    record = open_record(config, offline, 250, 400)
    for step in range(251, 401):
        record.write(train_row(step, loss=1 / step))
    record.write(val_row(300), {"per_genre": PER_GENRE, "examples": [FILM]})
    record.write(val_row(400), {"per_genre": PER_GENRE})
    record.write(val_row(400, "test"), {"per_genre": PER_GENRE})
    ended(record)

    assert steps_of(offline, "train") == list(range(1, 401))  # each once
    losses = {row["global_step"]: row["train/loss"] for row in history(offline) if "train/loss" in row}
    assert losses == {step: pytest.approx(1 / step) for step in range(1, 401)}
    assert steps_of(offline, "val") == [300, 400]
    assert steps_of(offline, "test") == [400]
    first, *_ = [row for row in history(offline) if "val/loss" in row]
    assert (first["val/macro_f1"], first["val_genres/f1/Drama"]) == (0.2, 0.5)
    table = json.loads(next(offline.glob(f"wandb/*/files/{first['val/films/path']}")).read_text())
    assert table["data"][0][0] == 603
    assert table["data"][0][2:] == ["a hacker learns", "Action", "Action 90%"]
    assert any("test/f1_by_genre" in name for row in history(offline) for name in row)
    runs = stored(offline, "run")
    assert {run.run_id for run in runs} == {(offline / "wandb_id").read_text()}  # one run in two segments
    assert {(run.project, run.run_group, run.job_type) for run in runs} == {("test", "default", "end_to_end")}


@pytest.mark.slow
def test_wandb_and_the_console_speak_of_other_data_in_its_words(
    offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(run=RunConfig(dir=str(offline)), tracking=TrackingConfig(project="test"))
    record = open_record(config, offline, 0, 400, ARTICLES)
    for kind in ("val", "test"):
        record.write(val_row(300, kind) | {"accuracy": 0.75}, {"per_genre": PER_GENRE, "examples": [FILM]})
    ended(record)
    assert "accuracy 0.7500" in capsys.readouterr().out
    names = {name for row in history(offline) for name in row}
    assert {"val_topics/f1/Drama", "val/articles/path", "val/accuracy"} <= names
    assert any("test/f1_by_topic" in name for name in names)
    assert not [name for name in names if "film" in name or "genre" in name]
    row = next(row for row in history(offline) if "val/articles/path" in row)
    table = json.loads(next(offline.glob(f"wandb/*/files/{row['val/articles/path']}")).read_text())
    assert table["columns"] == ["article", "poster", "overview", "topics", "predicted"]


def test_records_are_read_up_to_where_a_file_is_cut_or_damaged(offline: Path) -> None:
    record = open_record(Config(run=RunConfig(dir=str(offline))), offline, 0, 9)
    for step in range(1, 10):
        record.write(train_row(step))
    ended(record)
    (segment,) = offline.glob("wandb/offline-run-*/run-*.wandb")
    data = segment.read_bytes()
    whole = list(records(data))
    for end in range(0, len(data), 97):
        found = list(records(data[:end]))
        assert found == whole[: len(found)]
    assert len(list(records(data[:-1]))) == len(whole) - 1
    middle = len(data) // 2
    damaged = list(records(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]))
    assert 0 < len(damaged) < len(whole)
    assert damaged == whole[: len(damaged)]


def test_under_a_sweep_the_agents_run_is_taken(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    assert _run_id(offline) == "trial7"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    monkeypatch.delenv("WANDB_RUN_ID")
    assert _run_id(offline) == "trial7"  # continued by hand


def test_the_sweeps_command_is_one_that_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command that the agent builds of the file, with a stand-in for torchrun that prints what it is given."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((SWEEPS / "learning_rates.yaml").read_text())
    values = {name: {"value": its.get("value", its.get("min"))} for name, its in sweep["parameters"].items()}
    macros = {"${env}": ["/usr/bin/env"], "${args}": create_sweep_command_args({"args": values})["args"]}
    command = [word for part in create_sweep_command(sweep["command"]) for word in macros.get(part, [part])]
    stand_in = tmp_path / "torchrun"
    stand_in.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "trial7"}
    words = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    monkeypatch.chdir(SWEEPS.parents[1])
    config = parse_config(words[words.index("genre_dist.train") + 1 :]).config
    assert config.run.dir == "runs/sweep/trial7"
    assert (config.optim.text_lr, config.optim.poster_lr, config.optim.heads_lr) == (1e-4, 1e-5, 1e-4)
    kind, _, name = sweep["metric"]["name"].partition("/")
    assert name in val_row(1)
    assert kind == "val"
