"""What several test files share: a small model, its options, and ranks that are watched and always ended."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import forked
import pytest
import torch
import torchvision
from torch import Tensor, nn

from genre_dist import lock

torch.set_num_threads(1)  # runs in the tests' own process compute as the ranks they are compared with

TESTS = Path(__file__).parent
TORCHRUN = str(Path(sys.executable).with_name("torchrun"))

# a model that trains in milliseconds, without dropout, in fp32
TINY = (
    *("--model.poster.arch", "helpers:tiny_network", "--model.poster.weights", "none", "--data.image_size", "32"),
    *("--model.text.hidden", "8", "--model.text.layers", "1", "--model.text.embedding_dim", "8"),
    *("--model.heads.hidden", "[8]", "--train.precision", "fp32", "--data.workers", "1", "--tracking.wandb", "off"),
)


class TinyNetwork(nn.Module):
    """A poster network with what strategies have to take care of: convolutions and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # [B, 8, 5, 5] at 32 x 32


def tiny_network() -> nn.Module:
    return TinyNetwork()


def small_resnet() -> torchvision.models.ResNet:
    """A ResNet of bottlenecks, as ResNet152 is, 8 channels wide; its features are [B, 2048] and cheap all the same."""
    net = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], width_per_group=8)
    net.fc = nn.Identity()  # type: ignore[assignment]
    return net


def options(shards: Path | str, run: Path, *more: object) -> list[str]:
    """Command-line options of a small training run."""
    return [*TINY, "--data.shards", str(shards), "--run.dir", str(run), *map(str, more)]


def rows(run: Path, kind: str | None = "train") -> list[dict[str, Any]]:
    """The rows of a run's record, of one kind or (None) all."""
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in told if kind in (None, row["kind"])]


def losses(run: Path) -> dict[int, float]:
    """Training step -> loss; fails if a step is there twice."""
    found = rows(run)
    assert len({row["step"] for row in found}) == len(found), "a step was written twice"
    return {row["step"]: row["loss"] for row in found}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what is in it, but who wrote there last."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != lock.FILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def checkpoints(run: Path) -> list[str]:
    """Names in a run's folder of checkpoints."""
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


def saved(run: Path) -> bool:
    """Whether a whole checkpoint is there."""
    return any(name.removeprefix("step-").isdecimal() for name in checkpoints(run))


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition, by polling, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.01)


def step_reached(run: Path, step: int) -> bool:
    """Whether the record has this training step (its last line may still be half written)."""
    path = run / "metrics.jsonl"
    return path.exists() and f'"kind": "train", "step": {step},' in path.read_text()


def last_step(run: Path) -> int:
    """The last training step of a record that may be written to at this moment."""
    whole = (run / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    return max(row["step"] for row in map(json.loads, whole) if row["kind"] == "train")


class Processes:
    """Child processes in sessions of their own; when the block ends, they and all they started are gone."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.log.mkdir(parents=True, exist_ok=True)
        self.children: list[subprocess.Popen[bytes] | forked.Forked] = []

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a command with its output in a file of the log folder."""
        with open(self._next_log(), "wb") as file:
            child = subprocess.Popen(
                command, stdout=file, stderr=file, env=_environment(environment), start_new_session=True
            )
        self.children.append(child)
        return child

    def fork(self, module: str, arguments: Sequence[str], **environment: str) -> forked.Forked:
        """The same for a module of ours: forked, which saves the seconds in which it would import torch."""
        child = forked.Forked(module, arguments, _environment(environment), self._next_log())
        self.children.append(child)
        return child

    def _next_log(self) -> Path:
        return self.log / f"{len(self.children)}.log"

    def start_ranks(self, world: int, arguments: Sequence[str], module: str = "genre_dist.train") -> None:
        """Start the ranks of a run without a launcher, so that the exit code of each is seen."""
        port = str(free_port())
        for rank in range(world):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            self.fork(module, arguments, **place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)

    def start_torchrun(
        self, world: int, arguments: Sequence[str], module: str = "genre_dist.train", launcher: Sequence[str] = ()
    ) -> None:
        """Start a run as a user does."""
        self.start([TORCHRUN, "--standalone", f"--nproc_per_node={world}", *launcher, "-m", module, *arguments])

    def over(self) -> bool:
        """Whether a child has ended."""
        return any(child.poll() is not None for child in self.children)

    def wait(self, seconds: float = 180) -> list[int]:
        """The children's exit codes; a hang is a failure that shows what they said."""
        deadline = time.monotonic() + seconds
        try:
            return [child.wait(max(0.0, deadline - time.monotonic())) for child in self.children]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a process hangs:\n{self.output()}") from None

    def succeed(self, seconds: float = 180) -> None:
        """Wait until every child has ended well. A failure's first line, all that a summary shows, tells its cause."""
        if any(codes := self.wait(seconds)):
            said = self.output()
            cause = re.search(r"^.*(?:\b\w*Error\b|\berror\b|a rank hangs).*$", said, re.MULTILINE)
            told = cause.group().strip() if cause else "no error was told"
            pytest.fail(f"exit codes {codes}: {told}\n{said[-8000:]}", pytrace=False)

    def output(self) -> str:
        """All that the children said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.log.glob("*.log")))

    def kill(self) -> None:
        """SIGKILL for every child and all it started (torchrun's workers have sessions of their own)."""
        everyone = [pid for child in self.children if child.poll() is None for pid in descendants(child.pid)]
        for pid in everyone:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for child in self.children:
            child.wait(30)
        until(lambda: not any(alive(pid) for pid in everyone), 30, "killed processes to be gone")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.kill()


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """What a child is started with."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    paths = [str(TESTS), inherited.get("PYTHONPATH", "")]
    extra = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths)), "WANDB_MODE": "offline"}
    # torchrun and deepspeed are found where the tests' own Python is, whether or not its environment is activated
    extra["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
    return {**inherited, **extra, **more}


def train(log: Path, world: int, arguments: Sequence[str], seconds: float = 180) -> tuple[list[int], str]:
    """Run all ranks of a training to their end; their exit codes and what they said."""
    with Processes(log) as ranks:
        ranks.start_ranks(world, arguments)
        return ranks.wait(seconds), ranks.output()


def descendants(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in descendants(int(child)))]


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, read with torch's own tools."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    reader = dcp.FileSystemReader(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a single process loads by itself is no news
        state = _load_state_dict_from_keys(set(reader.read_metadata().state_dict_metadata), storage_reader=reader)
    return {name: tensor for name, tensor in _flat(state) if isinstance(tensor, torch.Tensor)}


def _flat(state: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(state, dict):
        return [(prefix, state)]
    return [pair for key, value in state.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def alive(pid: int) -> bool:
    """Whether a process still runs (a zombie does not)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
