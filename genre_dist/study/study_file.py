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
class PackingPlan:
    """A further packing of the same catalogue."""

    shards: str
    """The shards' folder."""
    pack: dict[str, Any] = field(default_factory=dict)
    """Options of `genre-dist pack` where they differ from data.pack; null removes one."""


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
    packings: dict[str, PackingPlan] = field(default_factory=dict)
    """Further packings by name, for stages that name one; all else reads `shards`."""

    def __post_init__(self) -> None:
        packs = any(packing.pack for packing in self.packings.values())
        require(not (self.pack or self.sample or packs) or self.catalogue is not None, "data.catalogue is missing")
        taken = {Path(self.shards): "data.shards"}
        for name, packing in self.packings.items():
            where, shards = f"data.packings.{name}", Path(packing.shards)
            require(is_folder_name(name), f"{where}: a packing's name is one of a file, without /")
            require(shards not in taken, f"{where}.shards: {shards} is that of {taken.get(shards)}; choose another")
            taken[shards] = where

    @property
    def all_packings(self) -> dict[str | None, PackingPlan]:
        """Every packing with all its options; that of `shards` under None."""
        packings: dict[str | None, PackingPlan] = {None: PackingPlan(shards=self.shards)}
        for name, packing in (packings | self.packings).items():
            options = {key: value for key, value in (self.pack | packing.pack).items() if value is not None}
            packings[name] = dataclasses.replace(packing, pack=options)
        return packings


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One training run, once for each seed."""

    config: str
    """The experiment's YAML, relative to the study's."""
    weights: dict[str, str] = field(default_factory=dict)
    """Encoder (text, poster) -> the earlier stage whose trained encoder it starts from, of the same seed."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the YAML, nested or dotted."""
    packing: str | None = None
    """The packing of data.packings that it trains on; data.shards by default."""
    processes: Positive | None = None
    """Ranks on this node; the study's by default."""


@dataclass(frozen=True, kw_only=True)
class HiddenPlan:
    """An evaluation of a stage with a field hidden, once for each seed, in a folder NAME-seedN."""

    of: str
    """The stage."""
    hide: str
    """The field."""


@dataclass(frozen=True, kw_only=True)
class FusedPlan:
    """A fusion of stages and of evaluations with a field hidden."""

    of: Annotated[tuple[str, ...], MinLen(1)]
    """Their names."""
    seeds: Literal["each", "together"] = "each"
    """`each`: with weights fitted on val, once for each seed, in a folder NAME-seedN; `together`: an ensemble, the mean
    of all seeds' logits, in a folder NAME."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The chain: data, exploration, baselines, stages, what is derived from them, comparison."""

    data: DataPlan
    """The shards and their sources."""
    stages: Annotated[dict[str, StagePlan], MinLen(1)]
    """Training runs by name, in order; null removes one."""
    hidden: dict[str, HiddenPlan] = field(default_factory=dict)
    """Evaluations of stages with a field hidden, by name."""
    fused: dict[str, FusedPlan] = field(default_factory=dict)
    """Fusions by name."""
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
        self._check_names()
        self._check_derived()
        before: list[str] = []
        for name, stage in self.stages.items():
            where = f"stages.{name}"
            if stage.packing is not None:
                require(bool(self.data.packings), f"{where}.packing: there are no data.packings")
                known(stage.packing, self.data.packings, "data.packings.")
            for encoder, source in stage.weights.items():
                known(encoder, ENCODERS, f"{where}.weights.")
                require(
                    source in before,
                    f"{where}.weights.{encoder}: `{source}` is no stage before it; those are {', '.join(before)}",
                )
            before.append(name)

    def folders(self, name: str) -> tuple[str, ...]:
        """The names of the folders of a stage, an evaluation with a field hidden or a fusion."""
        if name in self.fused and self.fused[name].seeds == "together":
            return (name,)
        return tuple(f"{name}-seed{seed}" for seed in self.seeds)

    def _check_names(self) -> None:
        """Raise ValueError for a name that is no folder's, or whose folder something else has."""
        sections = [f"{section}.{name}" for section in ("stages", "hidden", "fused") for name in getattr(self, section)]
        names: dict[str, str] = {}
        taken = dict.fromkeys(_OWN_FOLDERS, "the study") | {
            f"shards-{packing}": f"data.packings.{packing}" for packing in self.data.packings
        }
        for where in sections:
            name = where.partition(".")[2]
            require(is_folder_name(name), f"{where}: the name is that of a folder, without /")
            require(name not in names, f"{where}: {names.get(name)} has the same name; choose another")
            names[name] = where
            for folder in self.folders(name):
                require(folder not in taken, f"{where}: {taken.get(folder)} has {folder}; choose another name")
                taken[folder] = where

    def _check_derived(self) -> None:
        """Raise ValueError if an evaluation with a field hidden or a fusion is not of what there is."""
        for name, hidden in self.hidden.items():
            where = f"hidden.{name}.of"
            require(hidden.of in self.stages, f"{where}: `{hidden.of}` is no stage; those are {', '.join(self.stages)}")
        for name, fused in self.fused.items():
            where = f"fused.{name}.of"
            there = [*self.stages, *self.hidden]
            for member in fused.of:
                require(member in there, f"{where}: `{member}` is none of stages and hidden: {', '.join(there)}")
            require(len(set(fused.of)) == len(fused.of), f"{where}: names must differ, got {', '.join(fused.of)}")
            several = len(fused.of) > 1 or fused.seeds == "together"  # an ensemble of one seed is that run
            require(several, f"{where}: a fusion needs two runs; name another, or remove it by fused.{name}=null")
        require(not self.fused or self.split != "train", "split: a fusion has predictions of val and test only")


_OWN_FOLDERS = ("baselines", "encodings", "explore", "films", "logs", "report", "shards")
"""Folders and tasks of a study that are no stage's."""


def is_folder_name(name: str) -> bool:
    return is_file_name(name) and "/" not in name


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
        settings["data"] = data = _section(DataPlan, settings["data"], "data.")
        if isinstance(data, dict):
            _name_sections(data, "packings", PackingPlan, "data.")
    for key, cls in (("stages", StagePlan), ("hidden", HiddenPlan), ("fused", FusedPlan)):
        _name_sections(settings, key, cls)
    if settings.get("baselines") == "all":
        del settings["baselines"]
    return settings


def _name_sections(settings: dict[Any, Any], key: str, cls: type, prefix: str = "") -> None:
    """Check the sections by name under a key; null removes one."""
    if isinstance(sections := settings.get(key), dict):
        settings[key] = {
            name: _section(cls, section, f"{prefix}{key}.{name}.")
            for name, section in sections.items()
            if section is not None
        }


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
