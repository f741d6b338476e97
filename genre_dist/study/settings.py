"""Whether two configurations train the same: of a run that is there and one that is wanted, or of two seeds. Pure."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genre_dist.config import Config

Keys = Mapping[str, set[str]]
"""Settings by section."""

_OF_THE_MACHINE = {"shards", "workers", "prefetch", "micro_batch", "max_bad_fraction", "cache_dir", "cache_gb"}
WITHOUT_EFFECT: Keys = {
    "data": _OF_THE_MACHINE,
    "train": {"steps", "epochs", "log_every_steps", "eval_every_steps"},
}
"""Settings in which a run that is there may differ: they change no figure, or training itself knows what to do."""
_ALIKE_OR_NOT: Keys = {"data": _OF_THE_MACHINE, "train": {"log_every_steps", "eval_every_steps"}}
ENCODERS = ("text", "poster")
_SEED = re.compile(r"seed[-_]?\d+(?=/)")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing(there: Config, wanted: Config, ignored: Keys = WITHOUT_EFFECT) -> tuple[str, Any, Any] | None:
    """The first setting by which two configurations would train something else, with both values."""
    for section in ("data", "model", "loss", "optim", "train"):
        old, new = (flat(dataclasses.asdict(getattr(config, section))) for config in (there, wanted))
        without_effect = ignored.get(section, set())
        if section == "model":
            without_effect = _of_absent_encoders(old, new)
        for key, value in new.items():
            if key not in without_effect and _comparable(key, old[key]) != _comparable(key, value):
                return f"{section}.{key}", old[key], value
    if there.run.seed != wanted.run.seed:
        return "run.seed", there.run.seed, wanted.run.seed
    return None


def unlike_seeds(one: Config, other: Config) -> tuple[str, Any, Any] | None:
    """The first setting, other than the seed, by which two seeds of one experiment differ, with both values."""
    return differing(_without_seed(one), _without_seed(other), _ALIKE_OR_NOT)


def _without_seed(config: Config) -> Config:
    """The configuration of any seed; encoders that were trained before come from the run of the same seed."""
    text, poster = config.model.text, config.model.poster
    model = dataclasses.replace(
        config.model,
        text=dataclasses.replace(text, weights=text.weights and _SEED.sub("seed", text.weights)),
        poster=dataclasses.replace(poster, weights=_SEED.sub("seed", poster.weights)),
    )
    return dataclasses.replace(config, model=model, run=dataclasses.replace(config.run, seed=0))


def _of_absent_encoders(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    """Settings of encoders that neither model has."""
    absent = [name for name in ENCODERS if old[f"{name}.arch"] == new[f"{name}.arch"] == "none"]
    return {key for key in new if key.partition(".")[0] in absent}


def _comparable(key: str, value: Any) -> Any:
    """A file of weights is the same by whatever path it is named."""
    return Path(value).resolve() if key.endswith("weights") and isinstance(value, str) else value
