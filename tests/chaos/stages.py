"""The commands that are attacked, each with an undisturbed run of it to compare with."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from acquire_server import Handle
from faults import RANKS_COMMAND
from helpers import TORCHRUN, Processes, options
from laws import contents

CONFIGS = Path(__file__).parents[2] / "configs"
HANG_SECONDS = 30
ALL = ("SIGKILL", "SIGKILL", "SIGTERM", "pause", "full disk", "few descriptors")
TRAINING = (*ALL, "hang")
ALONE, RANKS, READERS = ("first", "child", "all"), ("first", "rank", "all"), ("first", "rank", "reader", "all")
GENRE_DIST = (sys.executable, "-m", "genre_dist.cli")
STEPS = ("--train.steps", 24, "--train.eval_every_steps", 12, "--checkpoint.every_steps", 4)
TRAIN = (
    *("--data.global_batch", 8, "--optim.warmup_steps", 4, "--parallel.timeout_seconds", HANG_SECONDS),
    *("--model.poster.batch_norm", "eval"),  # statistics of two ranks are averaged at a save: its moment would show
    *STEPS,
)
STUDY = {
    "data": {"sample": 160, "pack": {"require": "overview", "size": 48, "shard_size": 50}},
    "baselines": ["nb_bow"],
    "explore": False,
    "overrides": {
        "data": {"global_batch": 16, "image_size": 32, "workers": 1},
        "model": {"text": {"hidden": 8, "layers": 1, "embedding_dim": 8}, "heads.hidden": [8]},
        "train": {"steps": 24, "log_every_steps": 1},
        "checkpoint.every_steps": 4,
        "tracking.wandb": "off",
    },
    "stages": {"text": {"config": str(CONFIGS / "text_lstm.yaml"), "overrides": {"model.poster.arch": "none"}}},
}


class Stage(NamedTuple):
    """A command as a user types it, into a folder."""

    name: str
    command: Callable[[Path], list[str]]
    faults: tuple[str, ...]
    targets: tuple[str, ...]
    progress: str = ""
    """Files that grow as it goes on, as a glob."""
    begin: Path | None = None
    """What its folder holds before."""

    def prepare(self, out: Path) -> None:
        if self.begin is not None:
            shutil.copytree(self.begin, out, dirs_exist_ok=True)

    def done(self, out: Path) -> int:
        """Its progress: bytes."""
        return sum(size_of(path) for path in out.glob(self.progress)) if self.progress else 0


class Reference(NamedTuple):
    """What an undisturbed start leaves, and how long it takes."""

    contents: dict[str, Any]
    seconds: float
    done: int
    written: int
    """Bytes in its folder that were not there before."""


def undisturbed(stage: Stage, folder: Path) -> Reference:
    """Run a stage once and for all."""
    out = folder / "out"
    out.mkdir(parents=True)
    stage.prepare(out)
    before, began = space_of(out), time.monotonic()
    with Processes(folder / "log") as processes:
        processes.start(stage.command(out))
        processes.succeed(300)
    return Reference(contents(out), time.monotonic() - began, stage.done(out), space_of(out) - before)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def space_of(folder: Path) -> int:
    """Bytes that a folder takes on a disk of pages."""
    return sum(-(-size_of(path) // 4096) * 4096 for path in folder.rglob("*"))


def all_stages(catalogue: Path, shards: Path, run: Path, server: Handle, study: Path) -> list[Stage]:
    """Every stage of the chain, small."""
    study.write_text(yaml.safe_dump(STUDY))

    def fetch(out: Path) -> list[str]:
        return [*GENRE_DIST, *server.arguments(out), "--years", "1990-2009", "--rate", "0"]

    def pack(out: Path) -> list[str]:
        told = ("--size", "72", "--shard_size", "30", "--workers", "2")
        return [*GENRE_DIST, "pack", "--catalogue", str(catalogue), "--out", str(out), *told]

    def train(strategy: str) -> Callable[[Path], list[str]]:
        more = (*TRAIN, "--parallel.strategy", strategy)
        return lambda out: on_two_ranks("genre_dist.train", *options(shards, out, *more))

    def evaluate(out: Path) -> list[str]:
        return on_two_ranks("genre_dist.cli", "evaluate", str(out), "--split", "train")

    def predict(out: Path) -> list[str]:
        return on_two_ranks("parts_of_64", "predict", str(run), "--catalogue", str(catalogue), "--out", str(out))

    def whole_study(out: Path) -> list[str]:
        places = (f"data.catalogue={out / 'catalogue'}", f"data.shards={out / 'shards'}")
        return [*GENRE_DIST, "study", "--config", str(study), "--out", str(out / "study"), "--set", *places]

    trainings = [Stage(name, train(name), TRAINING, READERS, "metrics.jsonl") for name in ("ddp", "fsdp", "zero2")]
    return [
        Stage("fetch", fetch, ALL, ("first",), ".fetch/journal.jsonl"),
        Stage("pack", pack, ALL, ALONE, "*.tar"),
        *trainings,
        Stage("evaluate", evaluate, ALL, READERS, begin=run),
        Stage("predict", predict, ALL, RANKS, "part-*.parquet"),
        Stage("study", whole_study, ALL, ALONE, "study/*/metrics.jsonl"),
    ]


def on_two_ranks(module: str, *arguments: str) -> list[str]:
    launcher = [TORCHRUN, "--standalone", "--nproc_per_node=2", RANKS_COMMAND]
    return [*launcher, sys.executable, "-m", module, *arguments]
