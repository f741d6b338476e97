"""srun is the launcher of a job's ranks: they do not outlive it either. SLURM itself sees to that."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from daemons import Slurm, environment_of, processes
from helpers import alive, descendants, step_reached, until
from kills import RUN
from test_jobs import TRAIN, training


def test_ranks_and_readers_on_all_nodes_end_when_srun_is_killed(
    slurm: Slurm, sample_shards: Path, project: Path, submit: Callable[..., str]
) -> None:
    run = project / "orphaned"
    more = ("--train.steps", 50000, "--train.eval_every_steps", 50000, "--data.workers", 1)
    job = submit("--nodes=2", *TRAIN, *training(sample_shards, run, *RUN, *more))
    until(lambda: step_reached(run, 3), 120, "step 3")
    everyone = [pid for rank in slurm.ranks(job).values() for pid in descendants(rank)]
    assert len(everyone) == 4  # two ranks with a reader each
    for pid in processes("srun --kill-on-bad-exit"):
        if environment_of(pid).get("SLURM_JOB_ID") == job:
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, everyone)), 10, "ranks and readers to be gone")
    slurm.cancel(job)
