"""What a study's YAML may say. Every mistake is found before anything runs, and names the nearest right key."""

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from genre_dist.config.rules import require
from genre_dist.printable import printable
from genre_dist.stream.manifest import SPLITS
from genre_dist.study.baselines import BASELINES
from genre_dist.study.settings import ENCODERS
from genre_dist.validation import is_file_name


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """Where the films are, and how shards are made of them if they are not there yet."""

    shards: str
    """The shards' folder."""
    catalogue: str | None = None
    """What to pack if there are no shards."""
    sample: int | None = None
    """So many procedural films are drawn if there is no catalogue."""
    pack: dict[str, Any] = field(default_factory=dict)
    """Options of `genre-dist pack`, such as size: 160."""

    def __post_init__(self) -> None:
        require(self.sample is None or self.sample >= 1, f"data.sample must be at least 1, got {self.sample}")
        require(not (self.pack or self.sample) or self.catalogue is not None, "data.catalogue is missing")


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One training run, once for each seed."""

    config: str
    """The experiment's YAML, relative to the study's."""
    weights: dict[str, str] = field(default_factory=dict)
    """Encoder (text, poster) -> the stage whose trained one it starts from, of the same seed."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the YAML, nested or dotted."""
    processes: int | None = None
    """Ranks on this node; the study's by default."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The chain: data, a look at it, baselines, stages, comparison."""

    data: DataPlan
    """Shards, and what they are made of."""
    stages: dict[str, StagePlan]
    """Training runs in their order, by name; null takes one out."""
    seeds: tuple[int, ...] = (0,)
    """Every stage runs once for each, in a folder NAME-seedN."""
    processes: int = 1
    """Ranks of a stage; more than one are started by torchrun."""
    lanes: int = 1
    """Stages at a time, each on GPUs of its own, or with its share of the cores; what they say goes to OUT/logs."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings for all stages; a stage's own win."""
    explore: bool = True
    """Look at the data first."""
    baselines: tuple[str, ...] = tuple(BASELINES)
    """Kinds of `genre-dist baseline`."""
    split: str = "test"
    """On which split the runs are compared."""
    group: str | None = None
    """W&B group of all runs; the YAML's name by default."""

    def __post_init__(self) -> None:
        require(bool(self.stages), "stages: name at least one")
        require(bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), f"seeds must differ, got {self.seeds}")
        require(self.processes >= 1, f"processes must be at least 1, got {self.processes}")
        require(self.lanes >= 1, f"lanes must be at least 1, got {self.lanes}")
        require(self.split in SPLITS, f"split must be one of {', '.join(SPLITS)}, got {self.split}")
        for kind in self.baselines:
            _known(kind, BASELINES, "baselines")
        before: list[str] = []
        for name, stage in self.stages.items():
            where = f"stages.{name}"
            require(is_file_name(name) and "/" not in name, f"{where}: a stage's name is that of its folder, without /")
            require(stage.processes is None or stage.processes >= 1, f"{where}.processes must be at least 1")
            for encoder, source in stage.weights.items():
                _known(encoder, ENCODERS, f"{where}.weights")
                require(
                    source in before,
                    f"{where}.weights.{encoder}: `{source}` is no stage before it; those are {', '.join(before)}",
                )
            before.append(name)


def load_study(path: Path, changes: Sequence[str] = ()) -> Study:
    """Read a study and change it by KEY=VALUE pairs with dotted keys and YAML values.

    Raises ValueError naming the wrong key, and the nearest right one, or the wrong value.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such study")
    told = _mapping(_parse(path.read_bytes(), str(path)), str(path))
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, such as seeds=[0], not `{change}`")
        _set(told, key, _parse(value.encode(errors="replace"), f"--set {key}"))
    try:
        json.dumps(told, default=str, skipkeys=True)  # an alias inside what it names is refused here
        return _study(told)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_brief(error)}") from None


def _parse(written: bytes, where: str) -> Any:
    try:
        return yaml.load(written, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not YAML ({_brief(error)})") from None


def _brief(error: Exception) -> str:
    return printable(error)[:500]


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are truth values, as in the experiments' files: `wandb: off` is a word."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def _study(told: dict[str, Any]) -> Study:
    values = _fields(Study, told, "")
    values["data"] = DataPlan(**_fields(DataPlan, values["data"], "data."))
    stages = _mapping(values["stages"], "stages")
    values["stages"] = {
        str(name): StagePlan(**_fields(StagePlan, stage, f"stages.{name}."))
        for name, stage in stages.items()
        if stage is not None  # taken out by --set
    }
    if values.get("baselines") == "all":
        del values["baselines"]
    for name in ("seeds", "baselines"):
        if name in values:
            require(isinstance(values[name], list), f"{name} is a list, found: {values[name]}")
            values[name] = tuple(values[name])
    for seed in values.get("seeds", ()):
        require(type(seed) is int and 0 <= seed < 2**32, f"seeds are whole numbers from 0 to 2^32 - 1, found: {seed}")
    return Study(**values)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "config": str,
    "shards": str,
    "catalogue": str,
    "group": str,
    "split": str,
    "sample": int,
    "processes": int,
    "lanes": int,
    "explore": bool,
    "pack": dict,
    "weights": dict,
    "overrides": dict,
}


def _fields(cls: type, told: Any, prefix: str) -> dict[str, Any]:
    """A mapping as keyword arguments of a dataclass, its keys and plain types checked."""
    told = _mapping(told, prefix.rstrip(".") or "a study")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key, value in told.items():
        _known(key, fields, prefix.rstrip("."))
        kind = _TYPES.get(key)
        if kind is not None and value is not None and (not isinstance(value, kind) or type(value) is bool is not kind):
            raise ValueError(f"{prefix}{key} is of type {kind.__name__}, found: {value}")  # type: ignore[union-attr]
    missing = [
        name
        for name, item in fields.items()
        if told.get(name) is None
        and item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{prefix}{missing[0]} is missing")
    return {key: value for key, value in told.items() if value is not None}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a section of keys, found: {printable(value)[:80]}")
    return value


def _known(key: Any, names: Any, where: str) -> None:
    if not isinstance(key, str) or key not in names:
        near = difflib.get_close_matches(str(key), list(names), n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"unknown key `{f'{where}.' if where else ''}{key}`; {hint}")


def _set(told: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        told = told.setdefault(section, {})
        if not isinstance(told, dict):
            raise ValueError(f"--set {key}: {section} is no section of keys")
    told[last] = value
