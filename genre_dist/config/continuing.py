"""Which settings may change when a run is resumed: this module decides it for each setting of the schema, once.

A run's checkpoints and its model.json store the settings that it was trained with (`trained_with`), so that another
command or an edited config.yaml cannot misrepresent the weights.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from genre_dist.config import Config

Effect = Literal["fixed", "start", "recorded", "free"]

EFFECTS: Mapping[Effect, tuple[str, ...]] = {
    # layout and meaning of the weights, and the order of the samples: a run with steps refuses a change
    "fixed": (
        *("data.global_batch", "data.last_batch", "data.block", "data.by_length", "data.image_size", "data.max_tokens"),
        *("model.text.arch", "model.text.hidden", "model.text.layers", "model.text.bidirectional"),
        *("model.text.pooling", "model.text.embedding_dim", "model.text.train_embedding", "model.text.frozen"),
        "model.text.frozen_through",
        *("model.poster.arch", "model.poster.frozen", "model.poster.frozen_through", "model.poster.batch_norm"),
        *("model.heads.hidden", "model.numbers", "model.missing", "optim.optimizer", "run.seed"),
    ),
    # starting weights: a run with steps keeps its own
    "start": ("model.text.weights", "model.poster.weights"),
    # further training and its length: a change is printed and recorded with the first step it applies to
    "recorded": (
        *("data.micro_batch", "data.crop_scale", "data.crop_ratio", "data.flip", "data.decode"),
        *("model.text.dropout", "model.text.inner_dropout"),
        *("model.text.unfreeze_at", "model.poster.unfreeze_at", "loss"),
        *("optim.text_lr", "optim.poster_lr", "optim.heads_lr", "optim.weight_decay", "optim.betas", "optim.schedule"),
        "optim.text_layer_decay",
        *("optim.warmup_steps", "optim.cooldown_fraction", "optim.final_lr_fraction", "optim.clip_norm"),
        *("train.steps", "train.epochs", "train.precision", "train.eval_every_steps", "train.stop_metric"),
        *("train.stop_patience", "train.stop_min_delta", "train.ema_decay"),
        *("train.drop_field",),
        *("parallel.compress_gradients", "parallel.deepspeed_config"),
    ),
    # location, cost and display of the run; a fingerprint of their content identifies the shards
    "free": (
        *("data.shards", "data.workers", "data.prefetch", "data.cache_dir", "data.cache_gb", "data.max_bad_fraction"),
        *("model.heads.kernel", "train.channels_last", "train.activation_checkpointing", "train.compile"),
        *("train.cuda_graph",),
        *("train.cache_encodings", "train.deterministic", "train.profile_steps", "train.memory_snapshot"),
        *("train.log_every_steps", "parallel.strategy", "parallel.offload_optimizer", "parallel.timeout_seconds"),
        *("checkpoint", "tracking", "run.dir", "run.overwrite", "run.max_minutes"),
    ),
}
"""The effect of changing a setting, or a whole section, of a run with steps."""

Changes = dict[str, tuple[Any, Any]]
"""Setting -> its value so far, and its new value."""


def effect_of(setting: str) -> Effect:
    """The effect of changing a setting, given by its dotted key."""
    effects = [
        effect
        for effect, names in EFFECTS.items()
        if any(setting == name or setting.startswith(f"{name}.") for name in names)
    ]
    assert len(effects) == 1, f"{setting} is to be decided once in {__name__}, not {len(effects)} times"
    return effects[0]


def trained_with(config: Config) -> dict[str, Any]:
    """All settings that are not free, in JSON's types."""
    return {name: value for name, value in settings(config) if effect_of(name) != "free"}


def changes(before: Mapping[str, Any], now: Mapping[str, Any], effect: Effect) -> Changes:
    """The settings with this effect that differ between two `trained_with`; settings that an older version did not have
    do not count."""
    return {
        name: (before[name], value)
        for name, value in now.items()
        if effect_of(name) == effect and name in before and not agree(name, before[name], value)
    }


def agree(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; `model.missing` of auto leaves it to the run or to its shards."""
    return bool(one == other or (name == "model.missing" and "auto" in (one, other)))


def describe(changed: Changes) -> str:
    """Changes as text."""
    return ", ".join(f"{name}={new} (was {old})" for name, (old, new) in changed.items())


def settings(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each setting of a section, or of nested mappings; tuples are lists, as in YAML, JSON."""
    is_mapping = isinstance(section, Mapping)
    for name, value in section.items() if is_mapping else vars(section).items():
        if dataclasses.is_dataclass(value) or (is_mapping and isinstance(value, Mapping)):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
