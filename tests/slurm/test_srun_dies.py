"""srun is the launcher of a job's ranks: they do not outlive it either."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import Slurm, _processes, environment_of
from helpers import alive, descendants, step_reached, until
from kills import RUN
from test_jobs import TRAIN, said, training


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_end_when_srun_is_killed(
    nodes: int, slurm: Slurm, sample_shards: Path, project: Path, submit: Callable[..., str]
) -> None:
    run = project / f"orphaned-{nodes}"
    more = ("--train.steps", 50000, "--train.eval_every_steps", 50000, "--data.workers", 1)
    job = submit(f"--nodes={nodes}", *TRAIN, *training(sample_shards, run, *RUN, *more))
    until(lambda: step_reached(run, 3), 120, "step 3")
    everyone = [pid for rank in slurm.ranks(job).values() for pid in descendants(rank)]
    sruns = [pid for pid in _processes("srun --kill-on-bad-exit") if environment_of(pid).get("SLURM_JOB_ID") == job]
    print(everyone, sruns)
    for pid in sruns:
        os.kill(pid, signal.SIGKILL)
    import time
    b = time.time()
    while time.time() - b < 40 and any(map(alive, everyone)): time.sleep(0.1)
    print("after", time.time() - b, [p for p in everyone if alive(p)], slurm.job(job)["JobState"])
    print(said(project)[-3000:])
    assert 0
