"""A rank dies, hangs or is asked to stop: torchrun's restarts, the watchdog, and what is left to see."""

import os
import signal
from pathlib import Path

from helpers import Processes, descendants, last_step, losses, options, saved, step_reached, until
from kills import RUN, STEPS, Bomb, Ranks, said, short_run

HUNG = 70


def rank_processes(launcher: int) -> list[int]:
    """The processes in which torchrun's ranks run, by rank."""
    found = {}
    for pid in descendants(launcher):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = [entry for entry in environment if entry.startswith(b"RANK=")]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if rank and b"genre_dist.train" in command:
            found[int(rank[0].removeprefix(b"RANK="))] = pid
    return [found[rank] for rank in sorted(found)]


def test_after_the_death_of_a_rank_torchrun_starts_the_group_again_from_the_last_checkpoint(
    quiet: Path, sample_shards: Path, tmp_path: Path
) -> None:
    """And a STOP file later ends it for good: restarts are for failures."""
    run = tmp_path / "run"
    arguments = options(sample_shards, run, *RUN, "--checkpoint.every_steps", 3)
    with Processes(tmp_path / "log") as ranks:
        ranks.start_torchrun(2, arguments, launcher=("--max-restarts=3",))
        until(lambda: saved(run) or ranks.over(), 90, "a checkpoint")
        os.kill(rank_processes(ranks.children[0].pid)[1], signal.SIGKILL)
        until(lambda: "continuing" in ranks.output() or ranks.over(), 90, "the restart")
        resumed = int(ranks.output().split("after step ")[1].split()[0])
        until(lambda: step_reached(run, resumed + 4) or ranks.over(), 90, "steps after it")
        (run / "STOP").touch()
        assert ranks.wait() == [1]  # torchrun knows no other code
        output = ranks.output()
    assert output.count("asked to stop") == 1, output
    assert output.count(f"continuing {run}") == 1, output
    assert (run / "exit_code").read_text() == "75\n"
    stopped = last_step(run)
    assert resumed + 4 <= stopped < STEPS
    with Processes(tmp_path / "again") as ranks:
        ranks.start_torchrun(2, arguments)
        ranks.succeed()
    assert losses(run) == losses(quiet)
    assert (run / "exit_code").read_text() == "0\n"


def test_a_rank_that_is_stuck_is_found_by_the_stacks_of_all_ranks_and_the_run_ends(
    sample_shards: Path, tmp_path: Path
) -> None:
    more = ("--parallel.timeout_seconds", 5, "--model.poster.arch", "kills:hanging_network")
    with Ranks(2, short_run(sample_shards, tmp_path / "run", *more), tmp_path) as ranks:
        until(lambda: None not in ranks.codes(), 60, "both ranks to give up")
        assert ranks.codes() == [HUNG, HUNG], said(tmp_path)
    stacks = [(tmp_path / f"rank-{rank}.log").read_text() for rank in (0, 1)]
    assert "in wait_for_ever" in stacks[1]
    assert "in wait_for_ever" not in stacks[0]
    assert "step.py" in stacks[0]
    for rank in (0, 1):
        assert f"[rank {rank} of 2] no collective finished for 5 s" in stacks[rank]


def test_beside_a_rank_that_is_frozen_the_others_say_where_they_wait_and_end(
    sample_shards: Path, tmp_path: Path
) -> None:
    """Rank 1 stops before a step's own exchange, so rank 0 waits for its gradients, wherever the machine is slow."""
    config = short_run(sample_shards, tmp_path / "run", "--checkpoint.every_steps", 60, "--parallel.timeout_seconds", 5)
    with Ranks(2, config, tmp_path, Bomb(rank=1, moment=4, how="SIGSTOP")) as ranks:
        until(lambda: ranks.codes()[0] is not None, 60, "rank 0 to give up")
        assert ranks.codes() == [HUNG, None], said(tmp_path)
    told = [line for line in said(tmp_path).splitlines() if line.startswith("[rank 0 of 2]")]
    assert any("in backward" in line for line in told)
