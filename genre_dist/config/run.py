"""The sections for a run's ranks, its folder and its checkpoints."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genre_dist.config.rules import require
from genre_dist.config.training import Metric

CONFIG, RECORD, METADATA, WEIGHTS = "config.yaml", "metrics.jsonl", "model.json", "model.safetensors"
"""Files of a run's folder: its configuration, its record, its model's metadata, and the model."""
TEXT_ENCODER = "text_encoder.json"
"""The architecture of a pretrained text encoder, beside the model."""

_OF_A_RUN = ("checkpoints/step-*", RECORD, METADATA, WEIGHTS)
"""Files beside the config.yaml of a run, at least one of them."""
SEED = r"seed[-_]?\d+"
"""The part of a run's path that names its seed."""
_SEEDED = re.compile(f"(?P<name>.+)[-_/.]{SEED}", re.IGNORECASE)


def experiment(folder: Path) -> str:
    """A run's path without its seed, which a separator parts from the name: `-seed0`, `_seed_1`, `/seed2`."""
    path = os.path.abspath(folder)  # resolving a symbolic link would lose its name
    seeded = _SEEDED.fullmatch(path)
    return seeded["name"] if seeded else path


def is_of_a_run(file: Path) -> bool:
    """Whether this is the config.yaml of a run, in its folder."""
    return file.name == CONFIG and any(any(file.parent.glob(name)) for name in _OF_A_RUN)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the ranks share the work."""

    strategy: Literal["auto", "single", "ddp", "fsdp", "zero1", "zero2", "zero3"] = "auto"
    """`auto`: single on one rank, ddp on several. fsdp and zero3 spread weights, gradients and optimizer over the
    ranks, zero2 gradients and optimizer, zero1 the optimizer; zero needs DeepSpeed."""
    compress_gradients: bool = False
    """ddp, fsdp: add gradients up in bf16, half the bytes between ranks, about three digits."""
    offload_optimizer: bool = False
    """zero: keep the optimizer's states and its work on the CPU."""
    deepspeed_config: str | None = None
    """zero: a JSON file of DeepSpeed settings that override those of this project, see configs/deepspeed/."""
    timeout_seconds: int = 600
    """When no rank has finished a collective or work of its own for so long, all print where they are and end with exit
    code 70. It must be longer than the longest such work (loading a checkpoint, writing the model)."""

    def __post_init__(self) -> None:
        require(self.timeout_seconds >= 1, "parallel.timeout_seconds must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every_steps: int | None = 500
    """Save every so many steps; null only at the end of the run."""
    every_minutes: float | None = None
    """Save also when so many minutes have passed since the last save; null never."""
    keep: int = 2
    """How many checkpoints stay on disk; older ones are removed after a newer one is whole."""
    best_metric: Metric | None = None
    """Save after every evaluation of the val split that is the best so far by this metric, and keep that checkpoint
    beside the newest; `genre-dist export RUN --which best` takes it."""
    asynchronous: bool = True
    """Write checkpoints in the background: training stands still only while the state is copied to the host's RAM."""

    def __post_init__(self) -> None:
        require(self.every_steps is None or self.every_steps >= 1, "checkpoint.every_steps must be at least 1 or null")
        require(
            self.every_minutes is None or self.every_minutes > 0, "checkpoint.every_minutes must be positive or null"
        )
        require(self.keep >= 1, "checkpoint.keep must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's folder, seed and time budget."""

    dir: str = "runs/end_to_end"
    """The run's folder. Started again on the same folder, a run continues from its newest whole checkpoint."""
    seed: int = 0
    """Seed of the weights, the order and the augmentation."""
    overwrite: bool = False
    """Delete what an earlier run left in `dir` and start from step 0."""
    max_minutes: float | None = None
    """Stop after this long as if asked to by a signal: checkpoint, exit code 75, to be continued. An evaluation under
    way is finished first."""
