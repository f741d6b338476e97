"""The sections for training: optimizer, schedule, length, precision."""

from dataclasses import dataclass
from typing import Literal

from genre_dist.config.rules import require

Metric = Literal["loss", "accuracy", "micro_f1", "macro_f1", "sample_f1", "mean_average_precision", "auc"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with one learning rate per part, warm-up, then a schedule."""

    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit` keeps AdamW's averages in 8 bits (Dettmers et al. 2022): 2 bytes a parameter instead of 8. It needs
    bitsandbytes, and a strategy that holds whole parameters (single, ddp)."""
    text_lr: float = 1e-3
    """Peak learning rate of the text encoder. A pretrained one (hf) wants less, some 2e-5 to 1e-4."""
    text_layer_decay: float = 1.0
    """With hf: layer i of n, counted from 0, has the learning rate text_lr * this^(n - i), the embeddings text_lr *
    this^(n + 1), as lower layers need less change (0.8 to 0.95; Howard and Ruder 2018). 1: the same for all."""
    poster_lr: float = 1e-4
    """Peak learning rate of the image encoder."""
    heads_lr: float = 1e-3
    """Peak learning rate of the heads."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases, norms and word vectors have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging constants."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: a cosine or a line down to final_lr_fraction at the last step, or constant."""
    warmup_steps: int = 50
    """Linear warm-up; at most a tenth of the run."""
    cooldown_fraction: float = 0.0
    """With the constant schedule: the last share of the run, over which the rate falls linearly to final_lr_fraction.
    A run can then be made longer without regret, up to where it begins."""
    final_lr_fraction: float = 0.0
    """Where the rate ends, as a share of the peak."""
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; null leaves it alone."""

    def __post_init__(self) -> None:
        for name in ("text_lr", "poster_lr", "heads_lr", "weight_decay"):
            require(getattr(self, name) >= 0, f"optim.{name} must not be negative, got {getattr(self, name)}")
        require(
            0 < self.text_layer_decay <= 1,
            f"optim.text_layer_decay must be more than 0 and at most 1, got {self.text_layer_decay}",
        )
        require(self.warmup_steps >= 0, f"optim.warmup_steps must not be negative, got {self.warmup_steps}")
        require(0 <= self.final_lr_fraction <= 1, "optim.final_lr_fraction must be in [0, 1]")
        require(0 <= self.cooldown_fraction <= 1, "optim.cooldown_fraction must be in [0, 1]")
        require(
            self.cooldown_fraction == 0 or self.schedule == "constant",
            f"optim.cooldown_fraction belongs to optim.schedule=constant; {self.schedule} falls by itself",
        )
        require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm must be positive or null")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, precision, evaluation and profiling of training."""

    steps: int | None = None
    """Optimizer steps; null means `epochs` epochs."""
    epochs: int = 10
    """Passes over the training split, if `steps` is not given."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes under autocast with fp32 parameters. `auto`: bf16 on a GPU that has it, else fp32."""
    channels_last: bool = True
    """Keep images and convolution weights as NHWC."""
    activation_checkpointing: Literal["none", "stages", "blocks", "selective"] = "none"
    """What the image encoder computes again in the backward pass instead of keeping it: its stages, its blocks, or in
    its blocks only what is cheap (norms and activations). A pretrained text encoder's layers count as blocks and as
    stages. Results stay the same."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the image encoder's repeated blocks with torch.compile: under a minute, once. `auto`: on a GPU with
    `cuda_graph`, in runs of 500 steps or more; without graphs compiled blocks take the host longer than they save an
    H100. Without a GPU it gains nothing and is left out."""
    cuda_graph: bool = False
    """Replay the image encoder's training passes as CUDA graphs (single, ddp), so that no GPU waits for its host;
    results stay the same. Takes the memory of its activations once more, and ddp exchanges gradients only after the
    encoder's backward pass. Not yet run on a GPU, so it is off."""
    drop_field: float = 0.0
    """Hide each field of a training sample with this probability, never all of them, drawn anew in each epoch: so the
    model learns to answer with any of its fields. Needs model.missing=learn."""
    cache_encodings: Literal["auto", "on", "off"] = "auto"
    """With all encoders frozen and images shown whole (data.crop_scale [1, 1], no flip), compute each sample's encoding
    once, beside the run's folder, and train the heads on those. `on`: an error where that cannot be."""
    eval_every_steps: int | None = None
    """Evaluate the val split every so many steps; null means at every epoch's end. Always at the end of the run."""
    stop_metric: Metric | None = None
    """Stop early when this number of the val rows has not improved in `stop_patience` evaluations. The run then ends as
    one that has done all its steps, and its last row says why."""
    stop_patience: int = 3
    """Evaluations without improvement that end the run."""
    stop_min_delta: float = 0.0
    """An improvement is more than this."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, 0.999 say: it is what is evaluated and exported. At step t the
    decay is at most (1 + t) / (10 + t), so that a short run forgets its start."""
    deterministic: bool = False
    """Take only algorithms that give the same bits every time; slower on a GPU."""
    profile_steps: str | None = None
    """`10:15` traces steps 10 to 15 into the run's folder `profile`, a Chrome trace for each rank."""
    memory_snapshot: bool = False
    """On a GPU: write what fills its memory after the profiled steps, and when it runs out."""
    log_every_steps: int = 1
    """Write every so many steps to metrics.jsonl (numbers are read one step late, so it costs nothing)."""

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 1, f"train.steps must be at least 1 or null, got {self.steps}")
        require(self.epochs >= 1, f"train.epochs must be at least 1, got {self.epochs}")
        require(
            self.eval_every_steps is None or self.eval_every_steps >= 1,
            "train.eval_every_steps must be at least 1 or null",
        )
        require(0 <= self.drop_field < 1, f"train.drop_field must be in [0, 1), got {self.drop_field}")
        require(self.log_every_steps >= 1, "train.log_every_steps must be at least 1")
        require(self.stop_patience >= 1, f"train.stop_patience must be at least 1, got {self.stop_patience}")
        require(self.stop_min_delta >= 0, "train.stop_min_delta must not be negative")
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"train.ema_decay must be between 0 and 1 or null, got {self.ema_decay}",
        )
        first, last = self.profiled or (1, 1)
        require(1 <= first <= last, f"train.profile_steps must be FIRST:LAST, got {self.profile_steps}")

    @property
    def profiled(self) -> tuple[int, int] | None:
        """First and last step of `profile_steps`, counted from 1; (0, 0) if they cannot be read."""
        if self.profile_steps is None:
            return None
        first, _, last = self.profile_steps.partition(":")
        return (int(first), int(last)) if first.isdecimal() and last.isdecimal() else (0, 0)
