"""The whole study by one command: killed in the middle, asked to stop, and continued to the report."""

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import Processes, checkpoints, losses, step_reached, until
from once import tell

from genre_dist import cli
from genre_dist.baselines import FILE as BASELINE
from genre_dist.lock import one_writer

SMALL = Path(__file__).parents[2] / "configs" / "study_small.yaml"
# what configs/study_small.yaml does in a minute, in seconds; one stage on two ranks
SMALLER = (
    *("data.sample=240", "baselines=[nb_bow, svm_tfidf]", "overrides.tracking.wandb=off", "explore=false"),
    *("overrides.data.image_size=32", "overrides.data.global_batch=16", "overrides.model.heads.hidden=[8]"),
    *("overrides.model.text.hidden=8", "overrides.model.text.embedding_dim=8"),
    *("overrides.model.poster.arch=helpers:tiny_network", "overrides.checkpoint.every_steps=2"),
    *("overrides.train.epochs=1", "overrides.train.log_every_steps=1", "stages.text.overrides.train.epochs=3"),
    *("stages.end_to_end.processes=2", "stages.end_to_end.overrides.train={epochs: 14, eval_every_steps: 1000}"),
    "stages.end_to_end.overrides.checkpoint.every_steps=1000",
)
pytestmark = pytest.mark.timeout(900)  # five trainings and three starts
STAGES = ("text", "poster", "combined_frozen", "end_to_end_warm", "end_to_end")


class Ran(NamedTuple):
    """What a study that was killed once and stopped once left behind."""

    out: Path
    said: list[str]
    """Of each start."""


def arguments(folder: Path) -> list[str]:
    shards = [f"data.catalogue={folder / 'catalogue'}", f"data.shards={folder / 'shards'}"]
    return ["study", "--config", str(SMALL), "--out", str(folder / "out"), "--set", *shards, *SMALLER]


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "genre_dist.cli", *arguments(folder)]


def saved(run: Path) -> bool:
    """Whether there is a whole checkpoint before the end."""
    return any(re.fullmatch(r"step-\d+", name) for name in checkpoints(run))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Ran:
    tell(pytestconfig, "study: five trainings, killed once, stopped once, continued to the report: a minute or two")
    folder = tmp_path_factory.mktemp("study")
    out, said = folder / "out", []
    with Processes(folder / "log0") as study:
        (child,) = [study.start(command(folder))]
        until(lambda: saved(out / "text-seed0") or child.poll() is not None, 300, "the text stage")
        assert child.poll() is None, study.output()
        study.kill()  # SIGKILL for the study and its stage
        said.append(study.output())
    with Processes(folder / "log1") as study:
        child = study.start(command(folder))
        until(lambda: step_reached(out / "end_to_end-seed0", 2) or child.poll() is not None, 500, "the last stage")
        assert child.poll() is None, study.output()
        child.send_signal(signal.SIGTERM)
        assert study.wait(90) == [75], study.output()
        said.append(study.output())
    with Processes(folder / "log2") as study:
        study.start(command(folder))
        study.succeed(400)
        said.append(study.output())
    return Ran(out, said)


def skipped(said: str) -> list[str]:
    return re.findall(r"^== \d+/\d+ (\S+): done$", said, re.MULTILINE)


def test_it_ends_in_a_report_of_all_runs(ran: Ran) -> None:
    told = json.loads((ran.out / "report" / "comparison.json").read_text())
    assert (ran.out / "report" / "index.html").is_file()
    assert [model["name"] for model in told["models"]] == ["nb_bow", "svm_tfidf", *STAGES]
    assert all((ran.out / "baselines" / kind / BASELINE).is_file() for kind in ("nb_bow", "svm_tfidf"))


def test_a_killed_study_goes_on_where_it_was(ran: Ran) -> None:
    assert skipped(ran.said[0]) == []
    assert skipped(ran.said[1]) == ["films", "shards", "baselines"]
    assert "continuing" in ran.said[1]
    assert list(losses(ran.out / "text-seed0")) == list(range(1, 1 + max(losses(ran.out / "text-seed0"))))


def test_asked_to_stop_it_saves_and_names_the_way_on(ran: Ran) -> None:
    assert "stopped in end_to_end-seed0 (SIGTERM); the same command goes on" in ran.said[1]
    assert skipped(ran.said[2])[3:] == [f"{name}-seed0" for name in STAGES[:-1]]
    assert "continuing" in ran.said[2]


def test_warm_and_frozen_start_from_the_trained_encoders(ran: Ran) -> None:
    for name in ("combined_frozen", "end_to_end_warm"):
        config = (ran.out / f"{name}-seed0" / "config.yaml").read_text()
        assert str(ran.out / "text-seed0" / "model.safetensors") in config
        assert str(ran.out / "poster-seed0" / "model.safetensors") in config


def test_a_finished_study_has_nothing_left_to_do(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(ran.out.parent)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")]
    assert len(lines) == 9
    assert all(line.endswith(": done") for line in lines)


def test_two_studies_do_not_work_in_one_folder(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    with one_writer(ran.out):
        assert cli.main(arguments(ran.out.parent)) == 2
    assert f"{ran.out} is being written by process {os.getpid()} on" in capsys.readouterr().err


def test_what_was_trained_otherwise_is_refused(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in ran.out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert cli.main([*arguments(ran.out.parent), "stages.text.overrides.optim.text_lr=0.5"]) == 2
    assert "optim.text_lr=0.003, the study asks for 0.5" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
