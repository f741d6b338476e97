"""Whether two configurations train the same model: an existing run and a wanted one, or two seeds. Pure."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from genre_dist.config import Config
from genre_dist.config.continuing import agree, effect_of, settings
from genre_dist.config.run import SEED

_SAME_FIGURES = frozenset({"data.micro_batch", "train.eval_every_steps"})
GOES_ON = _SAME_FIGURES | {"train.steps", "train.epochs"}
"""Settings, beside the free ones, in which an existing run may differ: training continues it with the new value."""
ENCODERS = ("text", "poster")
_SEED_OF_FOLDER = re.compile(f"{SEED}(?=/)")


def differing(existing: Config, wanted: Config, ignored: Collection[str] = GOES_ON) -> tuple[str, Any, Any] | None:
    """The first setting by which two configurations train different models, with both values."""
    old, new = dict(settings(existing)), dict(settings(wanted))
    absent = _absent_encoders(old, new)
    for key, value in new.items():
        if key in ignored or key.startswith(absent) or effect_of(key) == "free":
            continue
        if not agree(key, _comparable(key, old[key]), _comparable(key, value)):
            return key, old[key], value
    return None


def unlike_seeds(one: Config, other: Config) -> tuple[str, Any, Any] | None:
    """The first setting, other than the seed, by which two seeds of one experiment differ, with both values."""
    return differing(_without_seed(one), _without_seed(other), _SAME_FIGURES)


def _without_seed(config: Config) -> Config:
    """The configuration without its seed and without the seeds in the paths of its encoders' weights."""
    text, poster = config.model.text, config.model.poster
    model = dataclasses.replace(
        config.model,
        text=dataclasses.replace(text, weights=text.weights and _SEED_OF_FOLDER.sub("seed", text.weights)),
        poster=dataclasses.replace(poster, weights=_SEED_OF_FOLDER.sub("seed", poster.weights)),
    )
    return dataclasses.replace(config, model=model, run=dataclasses.replace(config.run, seed=0))


def _absent_encoders(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The key prefixes of encoders that neither model has."""
    prefixes = [f"model.{name}." for name in ENCODERS]
    return tuple(prefix for prefix in prefixes if old[f"{prefix}arch"] == new[f"{prefix}arch"] == "none")


def _comparable(key: str, value: Any) -> Any:
    """The value to compare: paths of weights are resolved, as several paths name the same file."""
    return Path(value).resolve() if key.endswith("weights") and isinstance(value, str) else value
