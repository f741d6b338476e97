"""A SLURM of our own for the session, and a project's folder to submit from."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Slurm, missing_programs
from helpers import TESTS
from once import tell

ROOT = TESTS.parent


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Slurm]:
    """Two nodes of 32 cores and 4 GPUs each, as far as SLURM knows."""
    if missing := missing_programs():
        pytest.skip(f"no SLURM to be had here: {', '.join(missing)} not installed (Debian: slurm-wlm, munge)")
    tell(pytestconfig, "slurm: a SLURM of two nodes starts; its jobs wait for time limits and lost nodes: four minutes")
    daemons = Slurm(tmp_path_factory.mktemp("slurm") / "daemons")
    try:
        daemons.start()
        yield daemons
    finally:
        daemons.stop()


@pytest.fixture(scope="session")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder with the scripts of launch/ and a cluster.sh of its own, as a user would have edited it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "launch").symlink_to(ROOT / "launch")
    (folder / "cluster.sh").write_text("GPU_JOB=(--gpus-per-node=1)\nCPU_JOB=(--comment=cpu)\nCONTAINER=()\n")
    paths = [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    slurm.environment |= {
        "CLUSTER": str(folder / "cluster.sh"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SBATCH_OUTPUT": f"{folder}/out/%x-%j.out",
        "WANDB_MODE": "offline",
    }
    (folder / "out").mkdir()
    return folder


@pytest.fixture(scope="session")
def run(slurm: Slurm, project: Path) -> Callable[..., str]:
    """Run a command in the project's folder; what it printed."""

    def run(*command: object, **environment: str) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=project,
            env=slurm.environment | environment,
            text=True,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def submit(run: Callable[..., str]) -> Callable[..., str]:
    """Submit with sbatch; the job's number."""
    return lambda *options, **environment: run("sbatch", "--parsable", *options, **environment).strip().split(";")[0]
