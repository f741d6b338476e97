"""The scripts of launch/: sound shell, a header that says how to use them, and README's commands are theirs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import TESTS

ROOT = TESTS.parent
SCRIPTS = sorted(path for path in (ROOT / "launch").rglob("*") if path.is_file())
NAMES = [str(path.relative_to(ROOT)) for path in SCRIPTS]


def refused(script: str, *arguments: str, **environment: str) -> str:
    """Run a script that should refuse; what it says."""
    clean = {"PATH": os.environ["PATH"]} | environment
    done = subprocess.run(["bash", ROOT / script, *arguments], env=clean, text=True, capture_output=True, cwd=TESTS)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    scripts = [*NAMES, ".ci/run"]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_each_script_begins_with_how_to_use_it(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    header = "\n".join(line for line in lines[1:40] if line.startswith("#"))
    assert name in header, "its header shows no command"


def test_nodes_never_train_alone_for_lack_of_an_address() -> None:
    assert "HEAD=node1:29400" in refused("launch/multinode.sh")
    assert "NODES=2" in refused("launch/multinode.sh", HEAD="node1:29400")
    assert "a port is missing" in refused("launch/multinode.sh", HEAD="node1", NODES="2")
    for name in ("launch/multinode.sh", "launch/slurm/train.sbatch"):
        assert "localhost" not in (ROOT / name).read_text()


def test_what_is_missing_is_named() -> None:
    assert "slots=GPUS" in refused("launch/deepspeed.sh", HOSTFILE="nowhere")
    assert "runs/NAME" in refused("launch/slurm/train.sbatch")
    assert "project's folder" in refused("launch/slurm/train.sbatch", "runs/x", CLUSTER="nowhere")
    assert "--array=0-15" in refused("launch/slurm/pack.sbatch")
    assert "a name" in refused("launch/slurm/study.sbatch")


FAKES = {  # what the job script calls, in a few lines each
    "python": "exit 0",
    "scontrol": """case "$*" in
        "show hostnames"*) echo n1 ;;
        "show node"*) echo "NodeAddr=127.0.0.1 NodeHostName=n1" ;;
        requeue*) echo queued >>"$NOTED" ;;
    esac""",
    "srun": """echo "$*" >>"$NOTED"
    saved=$RUN/checkpoints/$CHECKPOINT
    [ -z "$CHECKPOINT" ] || { mkdir -p "$saved" && touch "$saved/COMPLETE"; }
    [ -z "$SAYS" ] || { mkdir -p "$RUN" && echo "$SAYS" >"$RUN/exit_code" && exit 1; }
    kill -USR1 "$PPID"  # the limit draws near while ranks still start: the signal ends them before they can say a word
    exec sleep 20""",
}


class Job:
    """launch/slurm/train.sbatch, start after start, with made-up commands around it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.starts = folder, folder / "run", 0
        for name, body in FAKES.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / name).chmod(0o755)
        (folder / "cluster.sh").write_text("CONTAINER=()\n")

    def start(self, says: str = "", checkpoint: str = "") -> tuple[bool, str]:
        """A start whose ranks leave this exit code and this checkpoint; whether it is queued again, and its output."""
        noted = self.folder / "noted"
        noted.unlink(missing_ok=True)
        slurm = {
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_PER_TASK": "1",
        }
        slurm |= {"SLURM_RESTART_COUNT": str(self.starts)} if self.starts else {}
        own = {"CLUSTER": str(self.folder / "cluster.sh"), "NOTED": str(noted), "SAYS": says, "CHECKPOINT": checkpoint}
        path = {"PATH": f"{self.folder}:{os.environ['PATH']}", "RUN": str(self.run)}
        command = ["bash", "launch/slurm/train.sbatch", str(self.run), "--run.overwrite", "true"]
        done = subprocess.run(command, env=slurm | own | path, cwd=ROOT, text=True, capture_output=True, timeout=60)
        self.starts += 1
        self.noted = noted.read_text()
        queued = self.noted.endswith("queued\n")
        assert done.returncode == (0 if queued else int(says or 75)), done.stderr
        return queued, done.stdout


@pytest.mark.parametrize("says", ["", "75"])
def test_a_job_that_never_gets_to_a_checkpoint_is_not_queued_for_ever(says: str, tmp_path: Path) -> None:
    """Whether its ranks were still starting at the limit or said that they were asked to stop."""
    job = Job(tmp_path)
    assert [job.start(says)[0] for _ in range(2)] == [True, True]
    queued, told = job.start(says)
    assert not queued
    assert f"3 starts in a row ended at their limit without a newer checkpoint in {job.run}/checkpoints" in told
    assert "--signal=B:USR1@600" in told
    job.starts = 0  # submitted again
    assert job.start(says)[0]


def test_a_checkpoint_makes_the_starts_before_it_forgotten(tmp_path: Path) -> None:
    job = Job(tmp_path)
    told = [job.start("75", name)[0] for name in ("", "", "step-00000500", "step-00000500", "", "step-00001000", "")]
    assert told == [True] * 7
    assert [job.start("75")[0] for _ in range(2)] == [True, False]


def test_a_start_that_finished_or_failed_is_not_queued_and_a_later_start_deletes_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.start("75", "step-00000500")[0]
    assert job.noted.splitlines()[0].endswith("--run.overwrite true")  # the run that was there before
    for code in ("0", "2"):
        assert not job.start(code)[0]
        assert job.noted.strip().endswith("--run.overwrite false")


def test_the_clusters_particulars_are_read_without_a_word_by_a_strict_shell() -> None:
    command = 'set -eu; source launch/slurm/cluster.sh; echo "${#GPU_JOB[@]} ${#CPU_JOB[@]} ${#CONTAINER[@]}"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, text=True, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == ("0 0 0\n", "")


def test_readmes_commands_are_those_that_tests_run() -> None:
    """Each is run, on small data, by the test named here. On GPUs they have not been run."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## From one GPU to a cluster")[2].partition("\n## ")[0]
    commands = [line.partition("#")[0].strip() for line in re.findall(r"^    (.+)$", section, re.M)]
    doctor, launchers, slurm = "unit/test_doctor.py", "distributed/test_launchers.py", "slurm/test_jobs.py"
    run_by = {  # how the command begins -> the test, and a word of it
        "genre-dist doctor": (doctor, '"doctor"'),
        "torchrun --nproc_per_node=2 -m genre_dist.cli doctor": (doctor, 'module="genre_dist.cli"'),
        "bash launch/torchrun.sh": (launchers, "torchrun.sh"),
        "RANKS=2 bash launch/torchrun.sh": (launchers, '"RANKS": "2"'),
        "HEAD=node1:29400 NODES=2 bash launch/multinode.sh": (launchers, "multinode.sh"),
        "HOSTFILE=hostfile bash launch/deepspeed.sh": (launchers, "deepspeed.sh"),
        "source launch/slurm/cluster.sh": ("unit/test_launch_scripts.py", "source launch/slurm/cluster.sh"),
        "sbatch --array=0-15 launch/slurm/pack.sbatch": (slurm, "pack.sbatch"),
        "sbatch --nodes=2 --gpus-per-node=8 launch/slurm/train.sbatch": (slurm, "train.sbatch"),
        "bash launch/slurm/study.sbatch": (slurm, "study.sbatch"),
        "scancel JOB": (slurm, "scancel"),
    }
    for command in commands:
        known = max((start for start in run_by if command.startswith(start)), key=len, default=None)
        assert known is not None, f"no test runs `{command}`"
        file, word = run_by[known]
        assert word in (TESTS / file).read_text()
