"""No rank, and no reader of one, outlives its launcher by ten seconds, however it died; without one a run lives on."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Processes, alive, descendants, free_port, last_step, options, saved, step_reached, train, until

TRAIN = [sys.executable, "-m", "genre_dist.train"]
ENDLESS = ("--data.global_batch", 8, "--train.steps", 50000, "--train.eval_every_steps", 50000, "--data.workers", 1)
SECONDS = 10.0
OVER_BOTH = 'for RANK in 0 1; do RANK=$RANK LOCAL_RANK=$RANK "${@}" & done'


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


def meeting_point() -> dict[str, str]:
    return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"}


def torchrun(arguments: list[str]) -> list[str]:
    return [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2", *arguments[1:]]


def deepspeed(arguments: list[str]) -> list[str]:
    options = ["--num_gpus=2", f"--master_port={free_port()}", "--no_local_rank", "--module", *arguments[2:]]
    return [str(Path(sys.executable).with_name("deepspeed")), *options]


def shell(arguments: list[str]) -> list[str]:
    """A script that starts the ranks and waits for them."""
    return ["bash", "-c", f"{OVER_BOTH}; wait", "-", *arguments]


def mpirun(arguments: list[str]) -> list[str]:
    """As mpirun starts a shell for each rank, and that the rank."""
    ranks = "for RANK in 0 1; do OMPI_COMM_WORLD_RANK=$RANK bash -c '" + (
        'RANK=$OMPI_COMM_WORLD_RANK LOCAL_RANK=$OMPI_COMM_WORLD_RANK "${@}"; exit $?\' - "${@}" & done; wait'
    )
    return ["bash", "-c", ranks, "-", *arguments]


def ours(launcher: int) -> list[int]:
    """The ranks and readers below a process."""
    family = [pid for pid in descendants(launcher) if "genre_dist." in command_line(pid)]
    return [pid for pid in family if not any(word in command_line(pid) for word in ("deepspeed", "torchrun", "bash"))]


def gone_in_time(processes: list[int]) -> None:
    """Wait for them to end by themselves, and end them if they do not: nobody else knows them any more."""
    try:
        until(lambda: not any(map(alive, processes)), SECONDS, "ranks and readers to be gone")
    finally:
        for pid in filter(alive, processes):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("launch", "who"),
    [
        (torchrun, "torchrun"),
        (deepspeed, "bin/deepspeed"),
        (deepspeed, "deepspeed.launcher.launch"),
        (shell, "bash"),
        (mpirun, "bash"),
    ],
)
def test_ranks_and_readers_end_with_a_launcher_that_is_killed(
    launch: Callable[[list[str]], list[str]], who: str, sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("--parallel.strategy", "zero1") if launch is deepspeed else ()
    with Processes(tmp_path / "log") as started:
        started.start(launch([*TRAIN, *options(sample_shards, run, *ENDLESS, *more)]), **meeting_point())
        until(lambda: step_reached(run, 3) or started.over(), 120, "step 3")
        launcher = started.children[0].pid
        everyone = ours(launcher)
        assert len(everyone) == 4, started.output()  # two ranks with a reader each
        os.kill(next(pid for pid in descendants(launcher) if who in command_line(pid)), signal.SIGKILL)
        gone_in_time(everyone)
        told = started.output()
    assert told.count("the launcher is gone") in (1, 2), told  # a rank may stop with the other before it looks itself


def test_they_save_first(sample_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = options(sample_shards, run, *ENDLESS)
    with Processes(tmp_path / "log") as started:
        started.start_torchrun(2, arguments)
        until(lambda: step_reached(run, 3) or started.over(), 120, "step 3")
        everyone = ours(started.children[0].pid)
        started.children[0].kill()
        gone_in_time(everyone)
        assert f"saved after step {last_step(run)}" in started.output()
    assert (run / "exit_code").read_text() == "75\n"
    codes, output = train(tmp_path / "again", 2, [*arguments, "--train.steps", str(last_step(run) + 1)])
    assert codes == [0, 0], output  # and the folder is free


def test_a_rank_whose_launcher_is_gone_before_it_looks_ends_too(sample_shards: Path, tmp_path: Path) -> None:
    """It would wait for the other ranks."""
    script = 'RANK=0 "$@" & echo $!'
    arguments = options(sample_shards, tmp_path / "run", *ENDLESS)
    with Processes(tmp_path / "log") as started:
        launcher = started.start(["bash", "-c", script, "-", *TRAIN, *arguments], **meeting_point())
        launcher.wait(30)
        rank = int(started.output().split()[0])
        gone_in_time([rank])
        assert "the launcher is gone" in started.output()


def test_a_run_without_a_launcher_outlives_the_shell_that_started_it(sample_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = options(sample_shards, run, *ENDLESS)
    with Processes(tmp_path / "log") as started:
        shell = started.start(["bash", "-c", '"$@" & echo $!; wait', "-", *TRAIN, *arguments])
        until(lambda: step_reached(run, 3) or started.over(), 120, "step 3")
        (pid,) = [pid for pid in ours(shell.pid) if "stream" not in command_line(pid)]
        shell.kill()
        shell.wait(30)
        try:
            done = last_step(run)
            until(lambda: step_reached(run, done + 20), 60, "more steps")
        finally:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid), 30, "the run to end")
    assert saved(run)
