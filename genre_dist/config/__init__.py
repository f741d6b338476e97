"""The configuration schema: every setting of a training run, its meaning, and the rules between settings.

A run is described by a YAML file in `configs/` plus dotted overrides (`--model.poster.arch resnet18`). The resolved
copy is saved as `config.yaml` in the run's folder. Rules are checked where a section is made; those that need the
world size, in `derive_batches`.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import yaml

from genre_dist.config.batches import Batches, derive_batches
from genre_dist.config.data import DataConfig
from genre_dist.config.loss import LossConfig
from genre_dist.config.model import HeadsConfig, ModelConfig, NumbersConfig, PosterConfig, TextConfig
from genre_dist.config.rules import require
from genre_dist.config.run import CheckpointConfig, ParallelConfig, RunConfig
from genre_dist.config.tracking import TrackingConfig
from genre_dist.config.training import OptimConfig, TrainConfig

__all__ = [
    "Batches",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "HeadsConfig",
    "LossConfig",
    "ModelConfig",
    "NumbersConfig",
    "OptimConfig",
    "ParallelConfig",
    "PosterConfig",
    "RunConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "derive_batches",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a training run. The defaults are the experiment of `configs/end_to_end.yaml`."""

    data: DataConfig = field(default_factory=DataConfig)
    """Shards, batches, augmentation."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoders and heads."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, precision, evaluation."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Strategy."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    run: RunConfig = field(default_factory=RunConfig)
    """Folder and seed."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """W&B and TensorBoard."""

    def __post_init__(self) -> None:
        require(
            self.train.drop_field == 0 or self.model.missing != "leave_out",
            "train.drop_field hides fields that model.missing=leave_out cannot do without; set it to learn",
        )
        reason = self.why_not_encoded_once
        require(
            self.train.cache_encodings != "on" or reason is None,
            f"train.cache_encodings=on: {reason or 'an encoder is trained, so its encodings change'}",
        )

    @property
    def why_not_encoded_once(self) -> str | None:
        """Why the samples' encodings may change between steps; None: they never do; empty: encoders are trained."""
        model, strategy = self.model, self.parallel.strategy
        if (model.uses_text and not model.text.frozen) or (model.uses_poster and not model.poster.frozen):
            return ""
        if model.unfreezes:
            return "they are unfrozen later (model.*.unfreeze_at)"
        if model.uses_poster and not self.data.shows_whole_posters:
            return (
                "images are cropped or mirrored at random; data.crop_scale [1, 1] and data.flip false show them whole"
            )
        if strategy in ("fsdp", "zero3"):
            return f"parallel.strategy={strategy} spreads the frozen encoders over the ranks; ddp does not"
        return None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The configuration as YAML that `--config` reads back."""
        return yaml.safe_dump(json.loads(json.dumps(self.to_dict())), sort_keys=False)  # tuples are lists
