"""The scripts of launch/slurm, submitted to a real SLURM."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from daemons import NODES, Slurm
from helpers import losses, options, rows, saved, step_reached, until
from kills import RUN
from torchvision.models import ResNet152_Weights

TRAIN = ("--gpus-per-node=1", "launch/slurm/train.sbatch")


def training(shards: Path, run: Path, *more: object) -> list[str]:
    """The arguments of train.sbatch for the short run."""
    arguments = options(shards, run, *RUN, *more)
    place = arguments.index("--run.dir")
    return [str(run), *arguments[:place], *arguments[place + 2 :]]


def said(project: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((project / "out").glob("*.out")))


def finished(slurm: Slurm, job: str, project: Path) -> dict[str, str]:
    told = slurm.wait(job)
    assert told["JobState"] == "COMPLETED", f"{told}\n{said(project)}"
    return told


@pytest.fixture(scope="module")
def limited(sample_shards: Path, project: Path, submit: Callable[..., str]) -> tuple[str, Path]:
    """A job too long for its time limit, submitted at once: SLURM counts in minutes."""
    run = project / "limited"
    more = ("--model.poster.arch", "kills:slow_at_first", "--checkpoint.every_steps", "null")
    return submit("--nodes=2", "--time=3", "--signal=B:USR1@100", *TRAIN, *training(sample_shards, run, *more)), run


@pytest.fixture(scope="module")
def quiet(
    limited: tuple[str, Path], slurm: Slurm, sample_shards: Path, project: Path, submit: Callable[..., str]
) -> Path:
    """A job on two nodes to which nothing happens."""
    run = project / "quiet"
    finished(slurm, submit("--nodes=2", *TRAIN, *training(sample_shards, run)), project)
    return run


def test_a_training_job_on_two_nodes_has_a_rank_on_each(quiet: Path, project: Path) -> None:
    assert list(losses(quiet)) == list(range(1, 61))
    assert (quiet / "exit_code").read_text() == "0\n"
    assert "on 2 x cpu" in said(project)


def test_a_killed_rank_starts_the_group_again_inside_the_job(
    quiet: Path, slurm: Slurm, sample_shards: Path, project: Path, submit: Callable[..., str]
) -> None:
    run = project / "killed"
    job = submit("--nodes=2", *TRAIN, *training(sample_shards, run))
    until(lambda: saved(run), 90, "a checkpoint")
    os.kill(slurm.ranks(job)[1], signal.SIGKILL)
    assert finished(slurm, job, project)["Restarts"] == "0"
    assert f"continuing {run}" in said(project)
    assert losses(run) == losses(quiet)


def test_a_cancelled_job_stays_cancelled(
    slurm: Slurm, sample_shards: Path, project: Path, submit: Callable[..., str], run: Callable[..., str]
) -> None:
    folder = project / "cancelled"
    job = submit(*TRAIN, *training(sample_shards, folder, "--model.poster.arch", "kills:slow_at_first"))
    until(lambda: step_reached(folder, 1), 90, "step 1")
    run("scancel", job)
    assert slurm.wait(job)["JobState"] == "CANCELLED"


def test_what_the_user_has_to_change_fails_the_job_and_is_not_queued_again(
    slurm: Slurm, sample_shards: Path, project: Path, submit: Callable[..., str]
) -> None:
    (project / "mistaken").mkdir()
    (project / "mistaken" / "exit_code").write_text("75\n")  # of an earlier start
    job = submit(*TRAIN, *training(sample_shards, project / "mistaken", "--train.stepz", 3))
    told = slurm.wait(job)
    assert (told["JobState"], told["Restarts"]) == ("FAILED", "0")
    told_once = (project / "out" / f"genre_dist-{job}.out").read_text()
    assert told_once.count("did you mean") == 1  # torchrun's restarts do not repeat it


def test_the_doctor_looks_at_a_job_from_inside(
    slurm: Slurm, sample_shards: Path, project: Path, submit: Callable[..., str]
) -> None:
    weights = project / "hub" / "checkpoints" / ResNet152_Weights.DEFAULT.url.rpartition("/")[2]
    weights.parent.mkdir(parents=True)
    weights.touch()  # no look at the network
    command = ("launch/slurm/command.sbatch", "genre-dist", "doctor", "--json", "--shards", sample_shards)
    job = submit("--gpus-per-node=2", "--cpus-per-task=3", "--job-name=doctor", *command, TORCH_HOME=str(project))
    assert slurm.wait(job)["JobState"] == "FAILED"  # GPUs were promised, and torch sees none
    told = (project / "out" / f"doctor-{job}.out").read_text()
    found = {row["name"]: row for row in json.loads(told[told.index("{") :])["findings"]}
    assert found["SLURM"]["told"] == f"job {job}: 1 nodes, 2 GPUs on this one, 3 cores a task"
    assert [name for name, row in found.items() if row["status"] == "wrong"] == ["CUDA"]


def test_an_array_packs_and_the_merge_follows_by_itself(
    slurm: Slurm, sample_catalogue: Path, sample_shards: Path, project: Path, submit: Callable[..., str]
) -> None:
    out = project / "shards"
    arguments = ("--catalogue", sample_catalogue, "--out", out, "--size", 72, "--shard_size", 50)
    submit("--array=0-1", "--cpus-per-task=1", "launch/slurm/pack.sbatch", *arguments)
    until(lambda: "JobName=merge " in slurm._ask("scontrol", "show", "job", "-o"), 90, "the merge to be submitted")
    finished(slurm, slurm.job_named("merge"), project)
    for path in sample_shards.glob("*.*"):
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_study_is_a_chain_of_jobs_in_one_group(
    slurm: Slurm, sample_shards: Path, project: Path, run: Callable[..., str]
) -> None:
    base = options(sample_shards, Path("unused"), "--data.global_batch", 8, "--train.steps", 3, "--data.workers", 0)
    tiny = dict(zip(base[::2], base[1::2], strict=True))
    shared = [word for key, value in tiny.items() if "arch" not in key and key != "--run.dir" for word in (key, value)]
    (project / "configs").mkdir()
    for stage, model in {
        "text_lstm": {"poster": {"arch": "none"}},
        "poster_resnet152": {"text": {"arch": "none"}, "poster": {"arch": "helpers:tiny_network"}},
        "combined_frozen": {"text": {"frozen": True}, "poster": {"arch": "helpers:tiny_network", "frozen": True}},
        "end_to_end_warm": {"poster": {"arch": "helpers:tiny_network"}},
    }.items():
        (project / "configs" / f"{stage}.yaml").write_text(yaml.safe_dump({"model": model}))
    weights = shared.index("--model.poster.weights")
    del shared[weights : weights + 2]
    told = run("bash", "launch/slurm/study.sbatch", "tiny", *shared)
    jobs = dict(re.findall(r"(\w+) +job (\d+)", told))
    assert list(jobs) == ["text_lstm", "poster_resnet152", "combined_frozen", "end_to_end_warm", "compare"]
    for job in jobs.values():
        finished(slurm, job, project)
    for stage in list(jobs)[:4]:
        config = yaml.safe_load((project / "runs" / "tiny" / stage / "config.yaml").read_text())
        assert config["tracking"]["group"] == "tiny"
        assert rows(project / "runs" / "tiny" / stage, "test")
    assert json.loads((project / "report" / "tiny" / "comparison.json").read_text())


def test_the_time_limit_is_a_preemption_and_the_job_goes_on_by_itself(
    quiet: Path, limited: tuple[str, Path], slurm: Slurm, project: Path
) -> None:
    job, run = limited
    assert int(finished(slurm, job, project)["Restarts"]) >= 1
    told = said(project)
    assert "back into the queue" in told
    assert f"continuing {run} after step" in told
    assert losses(run) == losses(quiet)


def test_a_job_whose_node_is_lost_goes_on_when_there_is_one_again(
    quiet: Path, slurm: Slurm, sample_shards: Path, project: Path, submit: Callable[..., str]
) -> None:
    run = project / "lost"
    job = submit("--nodes=2", *TRAIN, *training(sample_shards, run, "--model.poster.arch", "kills:slow_at_first"))
    until(lambda: step_reached(run, 4), 90, "step 4")
    slurm.kill_node(NODES[1])
    until(lambda: slurm.job(job)["Restarts"] == "1", 90, "SLURM to notice")
    slurm.start_node(NODES[1])
    finished(slurm, job, project)
    assert f"continuing {run} after step 3" in said(project)
    assert losses(run) == losses(quiet)
