"""The one schema: every setting of a training run, what it means, and the rules between them.

A run is described by a YAML file in `configs/` plus dotted overrides (`--model.poster.arch resnet18`). The resolved
copy is saved as `config.yaml` in the run's folder. Rules are checked where a section is made; those that need the
world size, in `derive_batches`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The overview's encoder: word vectors, then a recurrent network; its last valid states are the encoding."""

    arch: Literal["lstm", "gru", "none"] = "lstm"
    """Kind of cell, or `none` to leave the text out."""
    hidden: int = 512
    """Units per direction; the encoding is twice as wide when bidirectional."""
    layers: int = 3
    """Stacked layers."""
    bidirectional: bool = True
    """Read the text in both directions."""
    dropout: float = 0.0
    """Dropout between layers; the study found none works best."""
    embedding_dim: int = 300
    """Width of the word vectors, used only if the shards were packed without vectors."""
    train_embedding: bool = False
    """Train the word vectors too. Shards packed without vectors always train them."""
    frozen: bool = False
    """No gradient, eval mode for good, computed under no_grad."""
    weights: str | None = None
    """A `model.safetensors` of another run, whose text encoder to start from."""

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "embedding_dim"):
            _require(getattr(self, name) >= 1, f"model.text.{name} must be at least 1, got {getattr(self, name)}")
        _require(0 <= self.dropout < 1, f"model.text.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class PosterConfig:
    """The poster's encoder: a convolutional network without its classifier."""

    arch: str = "resnet152"
    """A torchvision classifier by name, `package.module:function` returning a feature extractor, or `none`."""
    weights: str = "auto"
    """`imagenet` (torchvision's default enum, an error if out of reach), `none` (random), a file (.safetensors or .pth,
    of torchvision or of a run), or `auto`: imagenet if in reach, else random with a warning."""
    frozen: bool = False
    """No gradient, eval mode for good, computed under no_grad."""
    frozen_through: str | None = None
    """Freeze only up to and including this module, in order of definition: `layer3` of a ResNet (the study trained only
    its last stage), `features.23` of VGG16 (all but the last three convolutions)."""
    batch_norm: Literal["train", "eval", "sync"] = "train"
    """BatchNorm uses the micro-batch's statistics, the stored ones, or those of all ranks together."""

    def __post_init__(self) -> None:
        _require(
            not (self.frozen and self.frozen_through),
            "model.poster.frozen freezes everything; drop it or model.poster.frozen_through",
        )


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """One small MLP per genre ("binary relevance"): encoding -> hidden... -> 1."""

    hidden: tuple[int, ...] = (1024, 512)
    """Widths of the hidden layers."""
    kernel: Literal["auto", "separate", "batched"] = "auto"
    """How the heads are computed: one by one, or all together in batched products. `auto`: batched on a GPU."""

    def __post_init__(self) -> None:
        _require(all(width >= 1 for width in self.hidden), f"model.heads.hidden must be positive, got {self.hidden}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Text encoder and poster encoder side by side, their encodings joined, one head per genre."""

    text: TextConfig = field(default_factory=TextConfig)
    """The overview's encoder."""
    poster: PosterConfig = field(default_factory=PosterConfig)
    """The poster's encoder."""
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    """The genre heads."""

    def __post_init__(self) -> None:
        _require(
            self.uses_text or self.uses_poster, "model.text.arch and model.poster.arch are both none: nothing to train"
        )

    @property
    def uses_text(self) -> bool:
        return self.text.arch != "none"

    @property
    def uses_poster(self) -> bool:
        return self.poster.arch != "none"

    @property
    def members(self) -> tuple[str, ...]:
        """What a sample must have to be trained on: names as in the manifest's counts."""
        return ("overview",) * self.uses_text + ("poster",) * self.uses_poster


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards, in which batches, with which augmentation."""

    shards: str = "shards/default"
    """Folder of packed shards (made by `genre-dist pack`)."""
    global_batch: int = 64
    """Samples per optimizer step over all ranks together."""
    micro_batch: int | Literal["auto"] = "auto"
    """Samples per forward pass on one rank. `auto`: the largest divisor of the rank's share up to 32."""
    last_batch: Literal["keep", "drop"] = "keep"
    """The samples left over at the end of an epoch: a smaller step, or left out (others each epoch)."""
    image_size: int = 224
    """Side of the square the poster encoder sees."""
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Training crop: share of the poster's area. (1, 1) turns cropping off."""
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    """Training crop: range of width over height."""
    flip: bool = False
    """Mirror half of the training posters."""
    max_tokens: int = 256
    """Longer texts are cut."""
    block: int = 32
    """Samples of a lane that are permuted together; larger mixes better, smaller reads more sequentially."""
    by_length: float = 0.0
    """How far the films of a step are of similar text length, 0 to 1: less padding, less random batches."""
    workers: int = 2
    """Reader processes per rank; 0 reads in the training process."""
    prefetch: int = 2
    """Micro-batches read ahead of those in use: the bound on samples in flight."""
    max_bad_fraction: float = 0.01
    """Stop when more than this share of an epoch (and more than 8 samples) could not be read."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "image_size", "max_tokens", "block", "prefetch"):
            _require(getattr(self, name) >= 1, f"data.{name} must be at least 1, got {getattr(self, name)}")
        _require(self.micro_batch == "auto" or self.micro_batch >= 1, "data.micro_batch must be auto or at least 1")
        _require(0 <= self.by_length <= 1, f"data.by_length must be in [0, 1], got {self.by_length}")
        _require(self.workers >= 0, f"data.workers must be 0 or more, got {self.workers}")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, f"data.crop_scale must be 0 < low <= high <= 1, got {self.crop_scale}")
        low, high = self.crop_ratio
        _require(0 < low <= high, f"data.crop_ratio must be 0 < low <= high, got {self.crop_ratio}")
        _require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with one learning rate per part, warm-up, then a schedule."""

    text_lr: float = 1e-3
    """Peak learning rate of the text encoder."""
    poster_lr: float = 1e-4
    """Peak learning rate of the poster encoder."""
    heads_lr: float = 1e-3
    """Peak learning rate of the heads."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases, norms and word vectors have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging constants."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: a cosine down to final_lr_fraction at the last step, or constant."""
    warmup_steps: int = 50
    """Linear warm-up; at most a tenth of the run."""
    final_lr_fraction: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; null leaves it alone."""

    def __post_init__(self) -> None:
        for name in ("text_lr", "poster_lr", "heads_lr", "weight_decay"):
            _require(getattr(self, name) >= 0, f"optim.{name} must not be negative, got {getattr(self, name)}")
        _require(self.warmup_steps >= 0, f"optim.warmup_steps must not be negative, got {self.warmup_steps}")
        _require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm must be positive or null")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, in which precision, and when to look."""

    steps: int | None = None
    """Optimizer steps; null means `epochs` epochs."""
    epochs: int = 10
    """Passes over the training split, if `steps` is not given."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes under autocast with fp32 parameters. `auto`: bf16 on a GPU that has it, else fp32."""
    channels_last: bool = True
    """Keep images and convolution weights as NHWC."""
    eval_every_steps: int | None = None
    """Evaluate the val split every so many steps; null means at every epoch's end. Always at the end of the run."""
    log_every_steps: int = 1
    """Write every so many steps to metrics.jsonl (numbers are read one step late, so it costs nothing)."""

    def __post_init__(self) -> None:
        _require(self.steps is None or self.steps >= 1, f"train.steps must be at least 1 or null, got {self.steps}")
        _require(self.epochs >= 1, f"train.epochs must be at least 1, got {self.epochs}")
        _require(
            self.eval_every_steps is None or self.eval_every_steps >= 1,
            "train.eval_every_steps must be at least 1 or null",
        )
        _require(self.log_every_steps >= 1, "train.log_every_steps must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the ranks share the work."""

    strategy: Literal["auto", "single", "ddp"] = "auto"
    """`auto`: single on one rank, ddp on several."""
    timeout_seconds: int = 600
    """A collective that hangs this long ends the run with an error instead of waiting for ever."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every_steps: int | None = 500
    """Save every so many steps; null only at the end of the run."""
    keep: int = 2
    """How many checkpoints stay on disk; older ones are removed after a newer one is whole."""

    def __post_init__(self) -> None:
        _require(self.every_steps is None or self.every_steps >= 1, "checkpoint.every_steps must be at least 1 or null")
        _require(self.keep >= 1, "checkpoint.keep must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and what makes it repeatable."""

    dir: str = "runs/end_to_end"
    """The run's folder. Started again on the same folder, a run continues from its newest whole checkpoint."""
    seed: int = 0
    """Seed of the weights, the order and the augmentation."""
    overwrite: bool = False
    """Delete what an earlier run left in `dir` and start from step 0."""
    max_minutes: float | None = None
    """Stop after this long as if asked to by a signal: checkpoint, exit code 75, to be continued."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Views of the record; metrics.jsonl is always written."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online with a key, offline without."""
    project: str = "genre_dist"
    """W&B project."""
    group: str | None = None
    """W&B group, to compare runs side by side."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a training run depends on. The defaults are the experiment of `configs/end_to_end.yaml`."""

    data: DataConfig = field(default_factory=DataConfig)
    """Shards, batches, augmentation."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoders and heads."""
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
    """W&B."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Batches(NamedTuple):
    """How a global batch is cut: per_rank = micro * accumulation, global = per_rank * world."""

    per_rank: int
    micro: int
    accumulation: int


def derive_batches(data: DataConfig, world: int) -> Batches:
    """Derive the rank's share, the micro-batch and the accumulation from the global batch.

    Raises ValueError if the world does not divide the global batch, or the micro-batch the rank's share.
    """
    total = data.global_batch
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    _require(
        total % world == 0,
        f"{world} ranks cannot share data.global_batch={total} evenly; use {_nearest(divisors, world)} ranks, "
        f"or a global batch that is a multiple of {world}, such as {max(1, round(total / world)) * world}",
    )
    per_rank = total // world
    if data.micro_batch == "auto":
        micro = max(n for n in range(1, min(per_rank, 32) + 1) if per_rank % n == 0)
    else:
        micro = data.micro_batch
        _require(
            per_rank % micro == 0,
            f"data.micro_batch={micro} does not divide the rank's share of {per_rank} (global batch {total} over "
            f"{world} ranks)",
        )
    return Batches(per_rank, micro, per_rank // micro)


def _nearest(candidates: list[int], wanted: int) -> int:
    return min(candidates, key=lambda n: (abs(n - wanted), n))
