"""A SLURM of two nodes on this host: munged, slurmctld and two slurmd, in a folder of their own, without systemd."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from helpers import alive, descendants, free_port, until

NODES = ("n1", "n2")
GPUS = 4
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL")


def missing_programs() -> list[str]:
    """What has to be installed for a SLURM of our own: Debian's slurm-wlm and munge."""
    return [program for program in PROGRAMS if _find(program) is None]


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


class Slurm:
    """The daemons and what tests ask of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("run", "log", "state"):
            (folder / name).mkdir(parents=True)
        self.config = folder / "slurm.conf"
        self.config.write_text(_configuration(folder))
        # files that stand for GPUs: SLURM counts and hands them out, CUDA sees none
        (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/run/gpu[0-{GPUS - 1}]\n")
        for number in range(GPUS):
            (folder / "run" / f"gpu{number}").touch()
        key = folder / "run" / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        self.environment |= {"SLURM_CONF": str(self.config)}

    def start(self) -> None:
        run, log = self.folder / "run", self.folder / "log"
        munge = [f"--{name}={run}/munge.{name.removesuffix('-file')}" for name in ("pid-file", "seed-file")]
        self._start(
            "munged", "--foreground", "--force", f"--key-file={run}/munge.key", f"--socket={run}/munge.socket",
            f"--log-file={log}/munged.log", *munge,
        )  # fmt: skip
        until(lambda: (run / "munge.socket").exists(), 30, "munged")
        self._start("slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        until(self._idle, 60, f"both nodes to be idle; logs in {log}")

    def start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """The node is gone at once, with all that ran on it."""
        daemon = self.daemons.pop(node)
        for pid in [daemon.pid, *self._on(node)]:
            _kill(pid)
        daemon.wait(30)

    def _on(self, *nodes: str) -> list[int]:
        """The step managers on these nodes, which are told by what they started, and all they started."""
        found = []
        for step in processes("slurmstepd: ["):
            family = descendants(step)
            ours = any(environment_of(pid).get("SLURM_CONF") == str(self.config) for pid in family)
            if ours and any(environment_of(pid).get("SLURMD_NODENAME") in nodes for pid in family):
                found += family
        return found

    def _start(self, program: str, *options: str, name: str | None = None) -> None:
        path = _find(program)
        assert path is not None
        with open(self.folder / "log" / f"{name or program}.out", "ab") as output:
            self.daemons[name or program] = subprocess.Popen(
                [path, *options], stdout=output, stderr=output, env=self.environment, start_new_session=True
            )

    def _idle(self) -> bool:
        told = self._ask("sinfo", "-h", "-N", "-o", "%N %T", check=False)
        return sorted(told.split("\n")) == [f"{node} idle" for node in NODES]

    def stop(self) -> None:
        """End every daemon and whatever jobs left."""
        everyone = [*self._on(*NODES), *(daemon.pid for daemon in self.daemons.values())]
        for pid in everyone:
            _kill(pid)
        for daemon in self.daemons.values():
            daemon.wait(30)
        until(lambda: not any(alive(pid) for pid in everyone), 30, "the daemons to be gone")

    # --- what a user does

    def _ask(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells, by name."""
        told = self._ask("scontrol", "show", "job", "-o", number)
        return dict(entry.split("=", 1) for entry in told.split() if "=" in entry)

    def job_named(self, name: str) -> str:
        """The number of the job with this name."""
        jobs = self._ask("scontrol", "show", "job", "-o").splitlines()
        (line,) = [line for line in jobs if f" JobName={name} " in line]
        return line.split()[0].removeprefix("JobId=")

    def wait(self, number: str, seconds: float = 240) -> dict[str, str]:
        """The job when it has ended."""
        until(lambda: self.job(number)["JobState"] in ENDED, seconds, f"the end of job {number}: {self.job(number)}")
        return self.job(number)

    def cancel(self, number: str) -> None:
        self._ask("scancel", number)

    def ranks(self, number: str) -> dict[int, int]:
        """Rank -> process of a training job."""
        found = {}
        for pid in processes("genre_dist.train"):
            environment = environment_of(pid)
            if environment.get("SLURM_JOB_ID") == number and "RANK" in environment:
                found[int(environment["RANK"])] = pid
        return found


def environment_of(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def processes(title: str) -> list[int]:
    """The processes with this in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if title in (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _configuration(folder: Path) -> str:
    host, user = socket.gethostname(), os.environ.get("USER") or "root"
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=32 Boards=1 SocketsPerBoard=1 "
        f"CoresPerSocket=32 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:{GPUS} State=UNKNOWN"
        for node in NODES
    )
    return f"""
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={free_port()}
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=600
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
