"""What torchrun forgets of how its ranks ended is noted, for the ranks it restarts and for job scripts."""

from pathlib import Path

import pytest
from helpers import options, snapshot

from genre_dist.parallel.launcher import EXIT_CODE, note_exit_code, settle, settled
from genre_dist.train import main


def attempt(launch: Path, number: int, local_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a rank that torchrun started."""
    folder = launch / f"attempt_{number}" / str(local_rank)
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")


def test_what_was_settled_in_one_attempt_holds_for_every_rank_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(tmp_path / "one_abc", 0, 1, monkeypatch)
    assert settled() is None
    settle(75)
    attempt(tmp_path / "one_abc", 1, 0, monkeypatch)
    assert settled() == 75


def test_but_not_for_another_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(tmp_path / "one_abc", 0, 0, monkeypatch)
    settle(75)
    attempt(tmp_path / "one_xyz", 0, 0, monkeypatch)
    assert settled() is None


@pytest.mark.parametrize("told", [None, "", "error.json"])
def test_without_torchrun_nothing_is_noted(told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    if told is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", told)
    settle(2)
    note_exit_code(tmp_path, 2)
    assert settled() is None
    assert snapshot(tmp_path) == {}


def test_the_exit_code_lies_in_the_runs_folder_until_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(tmp_path / "launch", 0, 0, monkeypatch)
    note_exit_code(tmp_path, 75)
    assert (tmp_path / EXIT_CODE).read_text() == "75\n"
    note_exit_code(tmp_path, None)
    note_exit_code(tmp_path, None)
    assert not (tmp_path / EXIT_CODE).exists()
    note_exit_code(tmp_path / "missing", 2)  # nothing was begun there
    assert not (tmp_path / "missing").exists()


def test_what_the_user_has_to_change_is_said_once_and_not_tried_again(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(sample_shards, tmp_path / "run", "--data.global_batch", 8, "--train.stepz", 4)
    attempt(tmp_path / "launch", 0, 0, monkeypatch)
    assert main(arguments) == 2
    assert "train.steps" in capsys.readouterr().err
    attempt(tmp_path / "launch", 1, 0, monkeypatch)
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_disk_that_fails_may_work_in_the_next_attempt(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(tmp_path / "launch", 0, 0, monkeypatch)
    run = tmp_path / "run"
    arguments = options(sample_shards, run, "--data.global_batch", 8, "--train.steps", 1)
    (run / "metrics.jsonl").mkdir(parents=True)
    assert main(arguments) == 2
    (run / "metrics.jsonl").rmdir()
    attempt(tmp_path / "launch", 1, 0, monkeypatch)
    assert main(arguments) == 0
    assert (run / EXIT_CODE).read_text() == "0\n"


@pytest.mark.parametrize(("restarts", "deletes"), [("0", True), ("1", False)])
def test_a_restarted_group_does_not_delete_what_it_has_trained(
    restarts: str, deletes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--run.overwrite true` means the run that was there before the launch."""
    attempt(tmp_path / "launch", int(restarts), 0, monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    seen: list[bool] = []
    monkeypatch.setattr("genre_dist.train.train", lambda config: seen.append(config.run.overwrite) or 0)
    assert main(options(tmp_path, tmp_path / "run", "--run.overwrite", "true")) == 0
    assert seen == [deletes]
