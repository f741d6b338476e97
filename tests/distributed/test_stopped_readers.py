"""A reader process that somebody has stopped is named, and keeps nobody from stopping the run."""

import os
import signal
from pathlib import Path

import pytest
from helpers import Processes, alive, descendants, last_step, options, saved, step_reached, until

from genre_dist.train import main

SHORT = ("--data.global_batch", 8, "--train.steps", 2, "--data.workers", 1)
FROZEN = ("--model.text.frozen", "true", "--model.poster.frozen", "true", "--data.crop_scale", "[1,1]")
ENDLESS = ("--data.global_batch", 8, "--train.steps", 50000, "--train.eval_every_steps", 50000, "--data.workers", 1)


def readers(pid: int) -> list[int]:
    """The reader processes of a rank."""
    return [child for child in descendants(pid) if b"stream.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("world", [1, 2])
def test_a_stopped_reader_is_named_and_the_run_can_be_stopped_all_the_same(
    world: int, sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with Processes(tmp_path / "log") as started:
        started.start_ranks(world, options(sample_shards, run, *ENDLESS, "--checkpoint.every_steps", 50000))
        until(lambda: step_reached(run, 3) or started.over(), 120, "step 3")
        (reader,) = readers(started.children[0].pid)
        os.kill(reader, signal.SIGSTOP)
        line = f"waiting for 3 s for reader process {reader}, which is stopped"
        until(lambda: line in started.output() or started.over(), 60, "the reader to be named")
        for rank in started.children:
            rank.terminate()
        assert started.wait() == [75] * world, started.output()
        until(lambda: not alive(reader), 10, "the stopped reader to be gone")
    assert saved(run) == (world == 1)  # ranks that wait for each other cannot agree on what to save
    if world == 1:
        assert f"saved after step {last_step(run)}" in started.output()


@pytest.mark.parametrize("doing", ["evaluating", "encoding"])
def test_a_stopped_reader_is_named_whatever_it_reads_for_and_all_goes_on_when_it_does(
    doing: str, sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["genre_dist.train", *options(sample_shards, run, *SHORT, *(FROZEN if doing == "encoding" else ()))]
    if doing == "evaluating":
        assert main([*arguments[1:], "--data.workers", "0"]) == 0
        arguments = ["genre_dist.cli", "evaluate", str(run), "--split", "train"]
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(config.replace("workers: 0", "workers: 1"))
    with Processes(tmp_path / "log") as started:
        started.fork(arguments[0], arguments[1:])
        pid = started.children[0].pid
        until(lambda: readers(pid) or started.over(), 60, "a reader")
        (reader,) = readers(pid)
        os.kill(reader, signal.SIGSTOP)
        line = f"waiting for 3 s for reader process {reader}, which is stopped"
        until(lambda: line in started.output() or started.over(), 60, "the reader to be named")
        os.kill(reader, signal.SIGCONT)
        started.succeed(90)


def test_ranks_that_wait_for_one_with_a_stopped_reader_hang_as_it_does(sample_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Processes(tmp_path / "log") as started:
        started.start_ranks(2, options(sample_shards, run, *ENDLESS, "--parallel.timeout_seconds", 10))
        until(lambda: step_reached(run, 3) or started.over(), 120, "step 3")
        (reader,) = readers(started.children[1].pid)
        os.kill(reader, signal.SIGSTOP)
        assert started.wait() == [70, 70]
        assert f"reader process {reader}, which is stopped" in started.output()
        assert "in _wait_for" in (tmp_path / "log" / "1.log").read_text()
        until(lambda: not alive(reader), 10, "the stopped reader to be gone")
