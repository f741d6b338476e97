"""The schema of a study's YAML. Every mistake is reported before anything runs, with the nearest right key."""

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
    """The shards, and how to make them if they do not exist."""

    shards: str
    """The shards' folder."""
    catalogue: str | None = None
    """The catalogue to pack if there are no shards."""
    sample: Positive | None = None
    """The number of procedural films to generate if there is no catalogue."""
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
    """Encoder (text, poster) -> the earlier stage whose trained encoder it starts from, of the same seed."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the YAML, nested or dotted."""
    processes: Positive | None = None
    """Ranks on this node; the study's by default."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The chain: data, exploration, baselines, stages, comparison."""

    data: DataPlan
    """The shards and their sources."""
    stages: Annotated[dict[str, StagePlan], MinLen(1)]
    """Training runs by name, in order; null removes one."""
    seeds: Annotated[tuple[Annotated[int, Ge(0), Le(2**32 - 1)], ...], MinLen(1)] = (0,)
    """Every stage runs once for each seed, in a folder NAME-seedN."""
    processes: Positive = 1
    """Ranks of a stage; torchrun starts more than one."""
    lanes: Positive = 1
    """Concurrent stages, each on its own GPUs or with its share of the cores; their output goes to OUT/logs."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings for all stages; a stage's own settings override them."""
    explore: bool = True
    """Whether to run `genre-dist explore` on the data first."""
    baselines: tuple[str, ...] = tuple(BASELINES)
    """Kinds of `genre-dist baseline`."""
    split: Literal["train", "val", "test"] = "test"
    """The split on which the runs are compared."""
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
    settings = _parse(path.read_bytes(), str(path))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is a section of keys, found: {printable(settings)[:80]}")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, such as seeds=[0], not `{change}`")
        _set(settings, key, _parse(value.encode(errors="replace"), f"--set {key}"))
    try:
        written = json.dumps(_known_keys(settings), default=str).encode()
    except (ValueError, TypeError, RecursionError) as error:  # such as an alias inside its own anchor
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
    """YAML in which only true and false are truth values, as in the experiments' files: `wandb: off` is a string."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def _known_keys(settings: dict[Any, Any]) -> dict[Any, Any]:
    """The settings without keys that are null. Raises ValueError for an unknown key."""
    settings = _section(Study, settings, "")
    if "data" in settings:
        settings["data"] = _section(DataPlan, settings["data"], "data.")
    if isinstance(stages := settings.get("stages"), dict):
        settings["stages"] = {
            name: _section(StagePlan, stage, f"stages.{name}.") for name, stage in stages.items() if stage is not None
        }
    if settings.get("baselines") == "all":
        del settings["baselines"]
    return settings


def _section(cls: type, section: Any, prefix: str) -> Any:
    if not isinstance(section, dict):
        return section
    for key in section:
        known(key, [item.name for item in dataclasses.fields(cls)], prefix)
    return {key: value for key, value in section.items() if value is not None}


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for name in sections:
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise ValueError(f"--set {key}: {name} is no section of keys")
    settings[last] = value
