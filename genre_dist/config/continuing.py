"""Which settings may change while a run goes on: each setting of the schema is decided here, once.

What a run was trained with travels in its checkpoints and its model.json (`trained_with`), so that neither another
command nor an edited config.yaml says something else of the weights than is true.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from genre_dist.config import Config

Effect = Literal["fixed", "start", "recorded", "free"]

EFFECTS: Mapping[Effect, tuple[str, ...]] = {
    # how the weights are to be read, what fits them, and the order of the samples: refused for a run that has steps
    "fixed": (
        *("data.global_batch", "data.last_batch", "data.block", "data.by_length", "data.image_size", "data.max_tokens"),
        *("model.text.arch", "model.text.hidden", "model.text.layers", "model.text.bidirectional"),
        *("model.text.pooling", "model.text.embedding_dim", "model.text.train_embedding", "model.text.frozen"),
        *("model.poster.arch", "model.poster.frozen", "model.poster.frozen_through", "model.poster.batch_norm"),
        *("model.heads.hidden", "optim.optimizer", "run.seed"),
    ),
    # where the weights began: a run that has steps keeps its own
    "start": ("model.text.weights", "model.poster.weights"),
    # how the weights are trained on, and for how long: printed, and in the record with the first step it applies to
    "recorded": (
        *("data.micro_batch", "data.crop_scale", "data.crop_ratio", "data.flip", "data.decode"),
        *("model.text.dropout", "model.text.unfreeze_at", "model.poster.unfreeze_at", "loss"),
        *("optim.text_lr", "optim.poster_lr", "optim.heads_lr", "optim.weight_decay", "optim.betas", "optim.schedule"),
        *("optim.warmup_steps", "optim.cooldown_fraction", "optim.final_lr_fraction", "optim.clip_norm"),
        *("train.steps", "train.epochs", "train.precision", "train.eval_every_steps", "train.stop_metric"),
        *("train.stop_patience", "train.stop_min_delta", "train.ema_decay"),
        *("parallel.compress_gradients", "parallel.deepspeed_config"),
    ),
    # where the run lives, what it costs, what is shown of it; the shards are known by what is in them
    "free": (
        *("data.shards", "data.workers", "data.prefetch", "data.cache_dir", "data.cache_gb", "data.max_bad_fraction"),
        *("model.heads.kernel", "train.channels_last", "train.activation_checkpointing", "train.compile"),
        *("train.cache_encodings", "train.deterministic", "train.profile_steps", "train.memory_snapshot"),
        *("train.log_every_steps", "parallel.strategy", "parallel.offload_optimizer", "parallel.timeout_seconds"),
        *("checkpoint", "tracking", "run.dir", "run.overwrite", "run.max_minutes"),
    ),
}
"""What a change of a setting, or of a whole section, means for a run that has steps."""

Changes = dict[str, tuple[Any, Any]]
"""Setting -> what the run was trained with, and what is asked for now."""


def effect_of(setting: str) -> Effect:
    """What a change of a setting, by its dotted key, means."""
    found = [
        effect
        for effect, names in EFFECTS.items()
        if any(setting == name or setting.startswith(f"{name}.") for name in names)
    ]
    assert len(found) == 1, f"{setting} is to be decided once in {__name__}, not {len(found)} times"
    return found[0]


def trained_with(config: Config) -> dict[str, Any]:
    """All settings that are not free, as JSON keeps them."""
    return {name: value for name, value in settings(config) if effect_of(name) != "free"}


def changes(before: Mapping[str, Any], now: Mapping[str, Any], effect: Effect) -> Changes:
    """The settings of a kind that differ between two runs' `trained_with`; one that an older version did not know does
    not."""
    return {
        name: (before[name], value)
        for name, value in now.items()
        if effect_of(name) == effect and name in before and before[name] != value
    }


def describe(changed: Changes) -> str:
    """Changes as people read them."""
    return ", ".join(f"{name}={new} (was {old})" for name, (old, new) in changed.items())


def settings(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each setting of a section, or of nested mappings; tuples are lists, as in YAML, JSON."""
    is_mapping = isinstance(section, Mapping)
    for name, value in section.items() if is_mapping else vars(section).items():
        if dataclasses.is_dataclass(value) or (is_mapping and isinstance(value, Mapping)):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
