"""Whether two configurations train the same: of a run that is there and one that is wanted, or of two seeds. Pure."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from genre_dist.config import Config
from genre_dist.config.continuing import effect_of, settings

_SAME_FIGURES = frozenset({"data.micro_batch", "train.eval_every_steps"})
GOES_ON = _SAME_FIGURES | {"train.steps", "train.epochs"}
"""Settings, beside the free ones, in which a run that is there may differ: training itself knows what to do."""
ENCODERS = ("text", "poster")
SEED = r"seed[-_]?\d+"
"""How a run's path names its seed."""
_SEED_OF_FOLDER = re.compile(f"{SEED}(?=/)")


def differing(there: Config, wanted: Config, ignored: Collection[str] = GOES_ON) -> tuple[str, Any, Any] | None:
    """The first setting by which two configurations would train something else, with both values."""
    old, new = dict(settings(there)), dict(settings(wanted))
    absent = _absent_encoders(old, new)
    for key, value in new.items():
        if key in ignored or key.startswith(absent) or effect_of(key) == "free":
            continue
        if _comparable(key, old[key]) != _comparable(key, value):
            return key, old[key], value
    return None


def unlike_seeds(one: Config, other: Config) -> tuple[str, Any, Any] | None:
    """The first setting, other than the seed, by which two seeds of one experiment differ, with both values."""
    return differing(_without_seed(one), _without_seed(other), _SAME_FIGURES)


def _without_seed(config: Config) -> Config:
    """The configuration of any seed; encoders that were trained before come from the run of the same seed."""
    text, poster = config.model.text, config.model.poster
    model = dataclasses.replace(
        config.model,
        text=dataclasses.replace(text, weights=text.weights and _SEED_OF_FOLDER.sub("seed", text.weights)),
        poster=dataclasses.replace(poster, weights=_SEED_OF_FOLDER.sub("seed", poster.weights)),
    )
    return dataclasses.replace(config, model=model, run=dataclasses.replace(config.run, seed=0))


def _absent_encoders(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """What settings of encoders that neither model has begin with."""
    prefixes = [f"model.{name}." for name in ENCODERS]
    return tuple(prefix for prefix in prefixes if old[f"{prefix}arch"] == new[f"{prefix}arch"] == "none")


def _comparable(key: str, value: Any) -> Any:
    """A file of weights is the same by whatever path it is named."""
    return Path(value).resolve() if key.endswith("weights") and isinstance(value, str) else value
