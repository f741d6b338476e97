"""A reader process that somebody has stopped is named, and keeps nobody from stopping the run."""

import os
import signal
from pathlib import Path

import pytest
from helpers import Processes, alive, descendants, last_step, options, saved, step_reached, until

ENDLESS = ("--data.global_batch", 8, "--train.steps", 50000, "--train.eval_every_steps", 50000, "--data.workers", 1)


@pytest.mark.parametrize("world", [1, 2])
def test_a_stopped_reader_is_named_and_the_run_can_be_stopped_all_the_same(
    world: int, sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with Processes(tmp_path / "log") as started:
        started.start_ranks(world, options(sample_shards, run, *ENDLESS, "--checkpoint.every_steps", 50000))
        until(lambda: step_reached(run, 3) or started.over(), 120, "step 3")
        _, reader = descendants(started.children[0].pid)
        os.kill(reader, signal.SIGSTOP)
        line = f"waiting for 3 s for reader process {reader}, which is stopped"
        until(lambda: line in started.output() or started.over(), 60, "the reader to be named")
        for rank in started.children:
            rank.terminate()
        assert started.wait() == [75] * world, started.output()
        assert not alive(reader)
    assert saved(run) == (world == 1)  # ranks that wait for each other cannot agree on what to save
    if world == 1:
        assert f"saved after step {last_step(run)}" in started.output()


def test_ranks_that_wait_for_one_with_a_stopped_reader_hang_as_it_does(sample_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Processes(tmp_path / "log") as started:
        started.start_ranks(2, options(sample_shards, run, *ENDLESS, "--parallel.timeout_seconds", 10))
        until(lambda: step_reached(run, 3) or started.over(), 120, "step 3")
        _, reader = descendants(started.children[1].pid)
        os.kill(reader, signal.SIGSTOP)
        assert started.wait() == [70, 70]
        assert f"reader process {reader}, which is stopped" in started.output()
        assert "in _wait_for" in (tmp_path / "log" / "1.log").read_text()
        assert not alive(reader)
