"""What a study's YAML may say. Every mistake is found before anything runs, and names the nearest right key."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from annotated_types import Ge, Le, MinLen

from genre_dist.baselines import BASELINES
from genre_dist.compare.alike import ENCODERS
from genre_dist.config.rules import known, require
from genre_dist.printable import printable
from genre_dist.validation import is_file_name, parse_json

Positive = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """Where the films are, and how shards are made of them if they are not there yet."""

    shards: str
    """The shards' folder."""
    catalogue: str | None = None
    """What to pack if there are no shards."""
    sample: Positive | None = None
    """So many procedural films are drawn if there is no catalogue."""
    pack: dict[str, Any] = field(default_factory=dict)
    """Options of `genre-dist pack`, such as size: 160."""

    def __post_init__(self) -> None:
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
    processes: Positive | None = None
    """Ranks on this node; the study's by default."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The chain: data, a look at it, baselines, stages, comparison."""

    data: DataPlan
    """Shards, and what they are made of."""
    stages: Annotated[dict[str, StagePlan], MinLen(1)]
    """Training runs in their order, by name; null takes one out."""
    seeds: Annotated[tuple[Annotated[int, Ge(0), Le(2**32 - 1)], ...], MinLen(1)] = (0,)
    """Every stage runs once for each, in a folder NAME-seedN."""
    processes: Positive = 1
    """Ranks of a stage; more than one are started by torchrun."""
    lanes: Positive = 1
    """Stages at a time, each on GPUs of its own, or with its share of the cores; what they say goes to OUT/logs."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings for all stages; a stage's own win."""
    explore: bool = True
    """Look at the data first."""
    baselines: tuple[str, ...] = tuple(BASELINES)
    """Kinds of `genre-dist baseline`."""
    split: Literal["train", "val", "test"] = "test"
    """On which split the runs are compared."""
    group: str | None = None
    """W&B group of all runs; the YAML's name by default."""

    def __post_init__(self) -> None:
        require(len(set(self.seeds)) == len(self.seeds), f"seeds must differ, got {self.seeds}")
        for kind in self.baselines:
            known(kind, BASELINES, "baselines.")
        before: list[str] = []
        for name, stage in self.stages.items():
            where = f"stages.{name}"
            require(is_file_name(name) and "/" not in name, f"{where}: a stage's name is that of its folder, without /")
            for encoder, source in stage.weights.items():
                known(encoder, ENCODERS, f"{where}.weights.")
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
    told = _parse(path.read_bytes(), str(path))
    if not isinstance(told, dict):
        raise ValueError(f"{path} is a section of keys, found: {printable(told)[:80]}")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, such as seeds=[0], not `{change}`")
        _set(told, key, _parse(value.encode(errors="replace"), f"--set {key}"))
    try:
        written = json.dumps(_given(told), default=str).encode()
    except (ValueError, TypeError, RecursionError) as error:  # such as an alias inside what it names
        raise ValueError(f"{path}: {_brief(error)}") from None
    return parse_json(Study, written, path, "configs/study.yaml shows how a study is written")


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


def _given(told: dict[Any, Any]) -> dict[Any, Any]:
    """A study's keys, each known, without those that null takes out. Raises ValueError for a key that is not known."""
    told = _section(Study, told, "")
    if "data" in told:
        told["data"] = _section(DataPlan, told["data"], "data.")
    if isinstance(stages := told.get("stages"), dict):
        told["stages"] = {
            name: _section(StagePlan, stage, f"stages.{name}.") for name, stage in stages.items() if stage is not None
        }
    if told.get("baselines") == "all":
        del told["baselines"]
    return told


def _section(cls: type, told: Any, prefix: str) -> Any:
    if not isinstance(told, dict):
        return told
    for key in told:
        known(key, [item.name for item in dataclasses.fields(cls)], prefix)
    return {key: value for key, value in told.items() if value is not None}


def _set(told: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        told = told.setdefault(section, {})
        if not isinstance(told, dict):
            raise ValueError(f"--set {key}: {section} is no section of keys")
    told[last] = value
