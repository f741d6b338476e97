"""What a run was trained with stays: finished or not, moved, copied, edited, or asked for with other settings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import checkpoints, losses, options, rows, snapshot
from small_disk import small_disk

from genre_dist import cli
from genre_dist.config.files import load_config, parse_config
from genre_dist.inference.trained_model import load_run
from genre_dist.lock import FILE as LOCK
from genre_dist.parallel.launcher import EXIT_CODE
from genre_dist.sealed import write_sealed
from genre_dist.train import main
from genre_dist.training.views import _run_id

pytestmark = pytest.mark.slow

STEPS = 4
RUN = (
    *("--model.poster.arch", "none", "--data.global_batch", 16, "--train.steps", STEPS, "--checkpoint.every_steps", 2),
    *("--optim.warmup_steps", 0, "--data.workers", 0),
)
FIXED = {
    "model.text.pooling": "max",
    "model.text.bidirectional": "false",
    "model.text.train_embedding": "true",
    "model.poster.batch_norm": "eval",
    "data.image_size": 64,
    "data.max_tokens": 7,
}


@pytest.fixture(scope="module")
def trained(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read only."""
    folder = tmp_path_factory.mktemp("identity") / "run"
    assert main(options(sample_shards, folder, *RUN)) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def stopped(run: Path) -> Path:
    """A run that was stopped after its second step, with a checkpoint of it."""
    for name in ("model.safetensors", "model.json", "vocabulary.txt", "thresholds.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    return run


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which a start is refused."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# --- other settings


@pytest.mark.parametrize("of", ["run", "stopped"])
@pytest.mark.parametrize("setting", FIXED)
def test_settings_that_decide_what_the_weights_mean_are_refused_and_the_run_stays_as_it_was(
    of: str, setting: str, sample_shards: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder: Path = request.getfixturevalue(of)
    before = snapshot(folder)
    line = fails(options(sample_shards, folder, *RUN, f"--{setting}", FIXED[setting]), capsys)
    assert f"{setting}={FIXED[setting]}".lower() in line.lower()
    assert "--run.overwrite true" in line
    assert snapshot(folder) == before


def test_other_settings_are_told_and_recorded_with_the_step_from_which_they_hold(
    stopped: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--optim.text_lr", 0.25, "--train.steps", 6, "--loss.label_smoothing", 0.5, "--data.prefetch", 3)
    assert main(options(sample_shards, stopped, *RUN, *more)) == 0
    told = capsys.readouterr().out
    assert "from step 3 on: loss.label_smoothing=0.5 (was 0.0), optim.text_lr=0.25 (was 0.001), train.steps=6" in told
    (row,) = rows(stopped, "settings")
    assert row["step"] == 3
    assert row["changes"] == {
        "loss.label_smoothing": [0.0, 0.5],
        "optim.text_lr": [0.001, 0.25],
        "train.steps": [STEPS, 6],
    }
    assert list(losses(stopped)) == [1, 2, 3, 4, 5, 6]
    assert load_config(stopped / "config.yaml").optim.text_lr == 0.25
    noted = json.loads((stopped / "model.json").read_text())["settings"]
    assert (noted["optim.text_lr"], noted["train.steps"]) == (0.25, 6)


def test_a_change_of_a_start_that_came_to_nothing_is_not_in_the_record(stopped: Path, sample_shards: Path) -> None:
    """The step that it held from was never saved; the next start asks for the settings of before."""
    saved = shutil.copytree(stopped / "checkpoints", stopped.with_name("saved"))
    assert main(options(sample_shards, stopped, *RUN, "--optim.text_lr", 0.25)) == 0
    assert len(rows(stopped, "settings")) == 1
    shutil.rmtree(stopped / "checkpoints")
    saved.rename(stopped / "checkpoints")
    (stopped / "model.json").unlink()
    assert main(options(sample_shards, stopped, *RUN)) == 0
    assert rows(stopped, "settings") == []


def test_a_finished_run_says_which_other_settings_have_no_effect_and_changes_nothing(
    run: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, when = snapshot(run), (run / "config.yaml").stat().st_mtime_ns
    assert main(options(sample_shards, run, *RUN, "--optim.heads_lr", 0.5, "--tracking.films", 3)) == 0
    assert f"all {STEPS} steps are done" in (told := capsys.readouterr().out)
    assert "without effect: optim.heads_lr=0.5 (was 0.001)" in told
    assert snapshot(run) == before
    assert (run / "config.yaml").stat().st_mtime_ns == when


def test_the_weights_a_run_began_with_stay_in_its_configuration(
    trained: Path, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(sample_shards, tmp_path / "next", *RUN)
    assert main([*arguments, "--model.text.weights", str(trained / "model.safetensors")]) == 0
    assert main([*arguments, "--train.steps", "5"]) == 0
    assert "without effect, the weights are those of the run: model.text.weights=None" in capsys.readouterr().out
    weights = load_config(tmp_path / "next" / "config.yaml").model.text.weights
    assert weights == str(trained / "model.safetensors")


def test_weights_to_begin_with_are_whole_and_of_the_same_words(
    run: Path, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / "model.safetensors"
    arguments = [*options(sample_shards, tmp_path / "next", *RUN), "--model.text.weights", str(weights)]
    facts = json.loads((run / "model.json").read_text())
    del facts["sha256"]
    write_sealed(run / "model.json", facts | {"text": facts["text"] | {"vocabulary_sha256": "0" * 64}})
    assert f"{weights} was trained with another vocabulary" in fails(arguments, capsys)
    write_sealed(run / "model.json", facts)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert f"{weights}: not the weights" in fails(arguments, capsys)
    assert not (tmp_path / "next").exists()


def test_an_edited_config_yaml_deceives_neither_training_nor_evaluation(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("pooling: last", "pooling: max"))
    line = fails(["--config", str(config), "--train.steps", "9"], capsys)
    assert "model.text.pooling=max (was last)" in line
    assert cli.main(["evaluate", str(run), "--split", "val"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{config}: the weights were not trained with model.text.pooling=max (was last)" in line


def test_a_run_of_an_older_version_has_its_config_yaml_to_tell(
    stopped: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = stopped / "checkpoints" / "step-00000002"
    facts = json.loads((checkpoint / "facts.json").read_text())
    del facts["settings"]
    (checkpoint / "facts.json").write_text(json.dumps(facts))
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.name != "COMPLETE"}
    (checkpoint / "COMPLETE").write_text(json.dumps(sizes))
    line = fails(options(sample_shards, stopped, *RUN, "--model.text.pooling", "max"), capsys)
    assert "model.text.pooling=max (was last)" in line
    assert main(options(sample_shards, stopped, *RUN)) == 0
    assert list(losses(stopped)) == [1, 2, 3, 4]


# --- finished is finished


def test_without_its_checkpoints_a_finished_run_is_finished_and_nothing_is_dropped(
    run: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    before = snapshot(run)
    assert main(options(sample_shards, run, *RUN)) == 0
    assert "is finished" in capsys.readouterr().out
    assert "has done 4 steps" in fails(options(sample_shards, run, *RUN, "--train.steps", 3), capsys)
    line = fails(options(sample_shards, run, *RUN, "--train.steps", 9), capsys)
    assert "no checkpoint to go on from" in line
    assert "pooling=max" in fails(options(sample_shards, run, *RUN, "--model.text.pooling", "max"), capsys)
    (run / "model.safetensors").unlink()
    assert "model.safetensors: missing; copy the whole folder again" in fails(options(sample_shards, run, *RUN), capsys)
    assert snapshot(run) | {"model.safetensors": before["model.safetensors"]} == before


def test_with_other_data_it_is_refused_too(
    run: Path, sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from genre_dist.packing.pack import pack

    pack(sample_catalogue, tmp_path / "others", size=72, quality=70, shard_size=50, workers=1)
    shutil.rmtree(run / "checkpoints")
    assert "data_fingerprint" in fails(options(tmp_path / "others", run, *RUN), capsys)


def test_without_its_weights_it_is_finished_again_from_its_last_checkpoint(run: Path, sample_shards: Path) -> None:
    weights, record = (run / "model.safetensors").read_bytes(), rows(run)
    (run / "model.safetensors").unlink()
    assert main(options(sample_shards, run, *RUN)) == 0
    assert (run / "model.safetensors").read_bytes() == weights
    assert rows(run) == record


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "vocabulary.txt"])
def test_a_damaged_model_is_written_anew_from_the_last_checkpoint(
    name: str, run: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, recorded = (run / name).read_bytes(), rows(run)
    (run / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert main(options(sample_shards, run, *RUN)) == 0
    assert f"{run / name}: " in capsys.readouterr().err
    assert (run / name).read_bytes() == whole
    assert [row["step"] for row in rows(run)] == [row["step"] for row in recorded]
    damaged = run / name
    damaged.write_bytes(b"")
    shutil.rmtree(run / "checkpoints")
    assert str(damaged) in fails(options(sample_shards, run, *RUN), capsys)


def test_killed_before_its_first_checkpoint_a_run_starts_again_and_keeps_the_record_aside(
    stopped: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = (stopped / "metrics.jsonl").read_bytes()
    for number in (1, 2):
        shutil.rmtree(stopped / "checkpoints")
        assert main(options(sample_shards, stopped, *RUN, "--run.max_minutes", 1e-9)) == 75
        aside = stopped / f"metrics-lost-{number}.jsonl"
        assert f"rows of before are kept in {aside}" in capsys.readouterr().out
        assert list(losses(stopped)) == [1]
    assert (stopped / "metrics-lost-1.jsonl").read_bytes() == record
    assert main(options(sample_shards, stopped, *RUN)) == 0
    assert not (stopped / "metrics-lost-3.jsonl").exists()


def test_with_none_but_damaged_checkpoints_nothing_begins_again_by_itself(
    stopped: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / "checkpoints" / "step-00000002" / "COMPLETE").unlink()
    before = snapshot(stopped)
    line = fails(options(sample_shards, stopped, *RUN), capsys)
    assert "no checkpoint is whole (step-00000002 damaged)" in line
    assert "--run.overwrite true" in line
    assert snapshot(stopped) == before
    assert main(options(sample_shards, stopped, *RUN, "--run.overwrite", "true")) == 0
    assert list(losses(stopped)) == [1, 2, 3, 4]


def test_overwriting_deletes_all_but_the_lock(run: Path, sample_shards: Path) -> None:
    (run / LOCK).touch()
    lock = (run / LOCK).stat().st_ino
    (run / "old").mkdir()
    assert main(options(sample_shards, run, *RUN, "--train.steps", 1, "--run.overwrite", "true")) == 0
    assert (run / LOCK).stat().st_ino == lock
    assert not (run / "old").exists()
    assert checkpoints(run) == ["step-00000001"]
    assert list(losses(run)) == [1]


def test_what_a_start_that_failed_has_left_hinders_no_overwriting(sample_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / EXIT_CODE).write_text("2\n")
    assert main(options(sample_shards, tmp_path / "run", *RUN, "--run.overwrite", "true")) == 0


# --- a full disk


def test_on_a_full_disk_a_finished_run_stays_finished_and_as_it_was(
    run: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(run)
    capsys.readouterr()
    with small_disk(0):
        assert main(options(sample_shards, run, *RUN)) == 0
    assert "is finished" in capsys.readouterr().out
    assert snapshot(run) == before


@pytest.mark.parametrize("room", [0, 300, 3_000, 60_000], ids=["config", "record", "checkpoint", "weights"])
def test_a_disk_that_fills_up_ends_a_start_in_one_line_and_the_next_goes_on(
    room: int, trained: Path, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(sample_shards, tmp_path / "run", *RUN, "--checkpoint.asynchronous", "false")
    with small_disk(room):
        line = fails(arguments, capsys)
    assert str(tmp_path / "run") in line
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert main(arguments) == 0
    assert losses(tmp_path / "run") == losses(trained)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


# --- moved and copied


def test_a_moved_run_is_continued_by_its_own_configuration_where_it_is(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert main(options(sample_shards, here, *RUN, "--run.max_minutes", 1e-9)) == 75
    here.rename(there)
    assert main(["--config", str(there / "config.yaml"), "--run.max_minutes", "null"]) == 0
    assert f"continuing {there} after step 1" in capsys.readouterr().out
    assert list(losses(there)) == [1, 2, 3, 4]
    assert load_config(there / "config.yaml").run.dir == str(there)
    assert not here.exists()


def test_a_config_of_ones_own_beside_a_folder_named_checkpoints_is_not_taken_for_a_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("run: {dir: runs/mine}\n")
    Path("checkpoints").mkdir()
    assert parse_config(["--config", "config.yaml"]).config.run.dir == "runs/mine"


def test_the_folder_of_a_moved_run_is_not_overwritten_unless_it_is_named(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "moved")
    arguments = ["--config", str(moved / "config.yaml"), "--run.overwrite", "true"]
    with pytest.raises(ValueError, match=r"name what to overwrite with --run\.dir"):
        parse_config(arguments)
    assert parse_config([*arguments, "--run.dir", str(moved)]).config.run.overwrite


def test_a_copy_is_a_run_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, run.with_name("copy")))
    before = snapshot(run)
    assert main(["--config", str(copy / "config.yaml"), "--train.steps", "5"]) == 0
    assert list(losses(copy)) == [1, 2, 3, 4, 5]
    assert snapshot(run) == before


def test_settings_of_a_run_can_be_taken_for_another_one(run: Path, tmp_path: Path) -> None:
    assert main(["--config", str(run / "config.yaml"), "--run.dir", str(tmp_path / "new"), "--run.seed", "1"]) == 0
    assert list(losses(tmp_path / "new")) == [1, 2, 3, 4]


def test_a_copy_has_an_id_of_its_own_in_wandb_and_a_moved_run_keeps_its(tmp_path: Path) -> None:
    run, copy, moved = (tmp_path / name for name in ("run", "copy", "moved"))
    run.mkdir()
    own = _run_id(run)
    shutil.copytree(run, copy)
    other = _run_id(copy)
    assert other != own
    assert (_run_id(run), _run_id(copy)) == (own, other)
    run.rename(moved)
    assert (_run_id(moved), _run_id(copy)) == (own, other)
    (moved / "wandb_id_of").write_text(f"/proc/self/root{moved}")  # one folder, mounted twice
    assert _run_id(moved) == own
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "wandb_id").write_text("of1version")  # which did not note where it was
    assert _run_id(tmp_path / "old") == "of1version"


# --- code that a run names

EVIL = """
import pathlib
from torch import nn


def network():
    pathlib.Path({trace!r}).touch()
    return nn.Conv2d(3, 8, 3)
"""


@pytest.fixture
def foreign(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run whose config.yaml, which came from elsewhere, names code; and what that code would leave."""
    run, trace = Path(shutil.copytree(trained, tmp_path / "foreign")), tmp_path / "trace"
    (tmp_path / "evil_code.py").write_text(EVIL.format(trace=str(trace)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("arch: none", "arch: evil_code:network"))
    (run / "model.json").unlink()
    return run, trace


@pytest.mark.parametrize(
    "act",
    [
        lambda run: cli.main(["evaluate", str(run), "--split", "val"]),
        lambda run: cli.main(["predict", str(run), "--overview", "a film"]),
        lambda run: main(["--config", str(run / "config.yaml")]),
        lambda run: main(["--config", str(run / "config.yaml"), "--run.dir", f"{run}2"]),
        lambda run: main(["--config", str(run / "config.yaml"), "--dry_run"]),
    ],
    ids=["evaluate", "predict", "resume", "another run", "dry run"],
)
def test_code_named_by_a_run_from_elsewhere_is_not_run(
    act: Callable[[Path], int], foreign: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, trace = foreign
    capsys.readouterr()
    assert act(run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(run / "config.yaml") in line
    assert "evil_code:network" in line
    assert "--trust_code" in line
    assert not trace.exists()


def test_what_a_user_names_is_run_and_trusted_from_then_on(
    foreign: tuple[Path, Path], sample_shards: Path, tmp_path: Path
) -> None:
    _, trace = foreign
    mine = options(sample_shards, tmp_path / "mine", *RUN, "--model.poster.arch", "evil_code:network")
    assert main(mine) == 0
    assert trace.exists()
    assert cli.main(["evaluate", str(tmp_path / "mine"), "--split", "val"]) == 0
    moved = (tmp_path / "mine").rename(tmp_path / "moved")
    assert main(["--config", str(moved / "config.yaml"), "--train.steps", "5"]) == 0
    shutil.rmtree(tmp_path / "state")  # another user, another machine
    assert main(["--config", str(moved / "config.yaml")]) == 2
    with pytest.raises(ValueError, match="--trust_code"):
        load_run(moved, torch.device("cpu"))
    assert load_run(moved, torch.device("cpu"), trust_code=True).config.model.poster.arch == "evil_code:network"
    assert main(["--config", str(moved / "config.yaml"), "--trust_code"]) == 0
