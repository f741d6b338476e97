"""A run that was stopped, in whatever way, goes on as if it never had been."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    Processes,
    alive,
    checkpoints,
    descendants,
    last_step,
    losses,
    options,
    rows,
    snapshot,
    step_reached,
    tensors_of,
    train,
    until,
)

from genre_dist.train import main

STEPS = 40
EVERY = 4
# dropout is on: its draws must not depend on what happened before either
RUN = (
    *("--data.global_batch", 8, "--train.steps", STEPS, "--run.seed", 2, "--model.text.layers", 2),
    *("--model.text.dropout", 0.3, "--train.eval_every_steps", 10, "--checkpoint.every_steps", EVERY),
)
PREEMPTED = 75
CLOCK = ("second", "data_wait", "memory")  # what depends on the machine's mood, by part of its name


def facts(run: Path) -> list[dict[str, Any]]:
    """All rows of the record without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if not any(part in key for part in CLOCK)} for row in rows(run, None)
    ]


def reached_or_over(run: Path, step: int, ranks: Processes) -> bool:
    """Whether the run has done this step, or has ended before it (which fails further down, with what it said)."""
    return step_reached(run, step) or any(child.poll() is not None for child in ranks.children)


@pytest.fixture(scope="module")
def whole(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on two ranks that nobody interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    codes, output = train(folder / "log", 2, options(sample_shards, folder / "whole", *RUN))
    assert codes == [0, 0], output
    return folder / "whole"


def test_the_uninterrupted_run_has_every_step_and_every_evaluation_once(whole: Path) -> None:
    assert [row["step"] for row in rows(whole)] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows(whole, "val")] == [10, 20, 30, STEPS]
    assert [row["step"] for row in rows(whole, "test")] == [STEPS]
    assert checkpoints(whole) == [f"step-{STEPS - EVERY:08d}", f"step-{STEPS:08d}"]
    wanted = {"samples_per_second", "data_wait", "mfu", "memory_bytes", "grad_norm", "lr_text", "lr_poster", "lr_heads"}
    assert all(wanted <= row.keys() and row["mfu"] == 0 for row in rows(whole))  # on a CPU: unknown, not guessed


def test_kill_9_of_all_ranks_and_of_the_launcher_loses_only_the_steps_since_the_last_checkpoint(
    whole: Path, sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = options(sample_shards, run, *RUN)
    with Processes(tmp_path / "log") as ranks:
        ranks.start_torchrun(2, arguments)
        until(partial(reached_or_over, run, 13, ranks), 90, "step 13")
        ranks.kill()
        assert ranks.children[0].returncode == -signal.SIGKILL, ranks.output()
    killed_after = max(losses(run))
    assert killed_after < STEPS, "the run was over before it could be killed"
    codes, output = train(tmp_path / "again", 2, arguments)
    assert codes == [0, 0], output
    resumed_from = int(output.split("continuing ")[1].split("after step ")[1].split()[0])
    assert killed_after - 2 * EVERY < resumed_from <= killed_after  # the last one may have been half written
    assert facts(run) == facts(whole)  # bit for bit, and no step twice
    expected, found = (tensors_of(folder / "checkpoints" / f"step-{STEPS:08d}") for folder in (whole, run))
    assert found.keys() == expected.keys()
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())


def test_asked_to_stop_all_ranks_save_and_exit_with_75_and_the_run_goes_on_alike(
    whole: Path, sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = options(sample_shards, run, *RUN, "--checkpoint.every_steps", "null")  # only what stopping saves
    done = 0
    for how in ("SIGTERM to one rank", "SIGUSR1 to all ranks", "STOP file"):
        with Processes(tmp_path / how) as ranks:
            ranks.start_ranks(2, arguments)
            wanted = done + 3
            until(partial(reached_or_over, run, wanted, ranks), 90, f"step {wanted}")
            if how == "STOP file":
                (run / "STOP").touch()
            for child in ranks.children[1:] if how == "SIGTERM to one rank" else ranks.children:
                if how != "STOP file":
                    os.kill(child.pid, signal.SIGTERM if "SIGTERM" in how else signal.SIGUSR1)
            asked = last_step(run)
            assert ranks.wait(60) == [PREEMPTED, PREEMPTED], ranks.output()
            assert done == 0 or f"after step {done} of {STEPS}" in ranks.output()
        done = max(losses(run))
        assert wanted <= done <= asked + 2 < STEPS  # the step under way, and the one in which the ranks agree
        assert checkpoints(run)[-1] == f"step-{done:08d}"  # nothing that was computed is lost
    codes, output = train(tmp_path / "again", 2, arguments)
    assert codes == [0, 0], output
    for row, expected in zip(facts(run), facts(whole), strict=True):
        if row["kind"] == "train":
            assert row == expected  # bit for bit
        else:  # stopping averages BatchNorm's statistics over the ranks once more, which rounds once more
            assert row.pop("kind") == expected.pop("kind")
            assert row == pytest.approx(expected, rel=1e-6)


def test_a_time_budget_stops_the_run_between_steps_and_evaluations_are_finished_however_short_it_is(
    sample_shards: Path, tmp_path: Path
) -> None:
    """A budget of nothing: each start does one step; what is due after it is made up for by the next start."""
    run = tmp_path / "run"
    arguments = options(sample_shards, run, *RUN, "--train.steps", 4, "--train.eval_every_steps", 2)
    for expected in ([("train", 1)], [("train", 2)], [("val", 2), ("train", 3)]):
        before = rows(run, None) if run.exists() else []
        assert main([*arguments, "--run.max_minutes", "1e-9"]) == PREEMPTED
        assert [(row["kind"], row["step"]) for row in rows(run, None)[len(before) :]] == expected
    assert main([*arguments, "--run.max_minutes", "1e-9"]) == 0  # an evaluation longer than the budget comes to an end
    uninterrupted = tmp_path / "uninterrupted"
    assert main([*arguments, "--run.dir", str(uninterrupted)]) == 0
    evaluated = [row["step"] for row in rows(uninterrupted, "val")]
    assert evaluated == [2, 4]
    assert facts(run) == facts(uninterrupted)


def test_on_another_number_of_ranks_it_goes_on_with_the_same_films_and_losses(
    sample_shards: Path, tmp_path: Path
) -> None:
    more = (*RUN, "--model.text.dropout", 0, "--model.poster.batch_norm", "eval")
    run, reference = tmp_path / "run", tmp_path / "reference"
    assert main(options(sample_shards, reference, *more)) == 0
    arguments = options(sample_shards, run, *more)
    with Processes(tmp_path / "log") as ranks:
        ranks.start_ranks(2, arguments)
        until(partial(reached_or_over, run, 6, ranks), 90, "step 6")
        everyone = [pid for child in ranks.children for pid in descendants(child.pid)]
        for child in ranks.children:
            os.kill(child.pid, signal.SIGKILL)
        # what the ranks had started ends by itself: nobody is left to end it
        until(lambda: not any(alive(pid) for pid in everyone), 30, "the ranks' own processes to end")
    assert main(arguments) == 0  # the world has changed, the command has not
    ours, theirs = rows(run), rows(reference)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(1, STEPS + 1))
    assert [row["samples"] for row in ours] == [row["samples"] for row in theirs]
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs], atol=1e-4)


# --- one rank, in this process


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_by_the_clock_it_saves_too_and_tells_how_long_training_stood_still(
    asynchronous: str, sample_shards: Path, tmp_path: Path
) -> None:
    often = ("--checkpoint.every_steps", "null", "--checkpoint.every_minutes", "1e-9", "--checkpoint.keep", 9)
    more = ("--model.poster.arch", "none", "--train.steps", 3, "--checkpoint.asynchronous", asynchronous)
    assert main(options(sample_shards, tmp_path / "run", *RUN, *often, *more)) == 0
    assert checkpoints(tmp_path / "run") == [f"step-{step:08d}" for step in (1, 2, 3)]
    stood_still = [row["checkpoint_seconds"] for row in rows(tmp_path / "run")]
    assert stood_still[0] == 0
    assert min(stood_still[1:]) > 0


@pytest.fixture(scope="module")
def short(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 steps on one rank."""
    run = tmp_path_factory.mktemp("short") / "run"
    assert main(options(sample_shards, run, *RUN, "--train.steps", 4)) == 0
    return run


def test_a_finished_run_started_again_changes_nothing(
    short: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(short)
    assert main(options(sample_shards, short, *RUN, "--train.steps", 4)) == 0
    assert "is finished" in capsys.readouterr().out
    assert snapshot(short) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--run.seed", "9"], "seed"),
        (["--data.global_batch", "16"], "global_batch"),
        (["--data.block", "8"], "block"),
        (["--model.poster.arch", "none"], "members"),
        (["--data.last_batch", "drop"], "last_batch"),
        (["--model.text.hidden", "12"], "step-00000004"),
        (["--model.text.layers", "1"], "step-00000004"),
        (["--model.text.layers", "3"], "step-00000004"),
    ],
)
def test_another_experiment_in_the_same_folder_is_refused_in_one_line_and_changes_nothing(
    change: list[str], named: str, short: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(short)
    capsys.readouterr()
    assert main(options(sample_shards, short, *RUN, "--train.steps", 8, *change)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert "run.overwrite" in line
    assert snapshot(short) == before


def test_other_data_are_refused(
    short: Path, sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from genre_dist.packing.pack import pack

    pack(sample_catalogue, tmp_path / "others", size=72, quality=70, shard_size=50, workers=1)
    before = snapshot(short)
    assert main(options(tmp_path / "others", short, *RUN, "--train.steps", 8)) == 2
    assert "data_fingerprint" in capsys.readouterr().err
    assert snapshot(short) == before


def test_the_same_shards_in_another_place_are_the_same_data(short: Path, shards_copy: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(short, tmp_path / "run"))
    assert main(options(shards_copy, run, *RUN, "--train.steps", 5)) == 0
    assert list(losses(run)) == [1, 2, 3, 4, 5]
