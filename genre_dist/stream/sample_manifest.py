"""The manifest of shards that were packed from a declared data set: `manifest.json` of schema version 2.

It carries the declared schema with its classes, and counts the samples of a shard by the fields they have.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, Predicate
from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file
from genre_dist.schema import Schema
from genre_dist.storage import AnyPath, any_path, read_bytes
from genre_dist.stream.manifest import FILE, SPLITS, Image, Manifest, PrintableText, Text, _twice, load_manifest
from genre_dist.validation import LARGEST_BYTES, Count, FileName, Sha256, parse_json

SCHEMA_VERSION = 2
_REMEDY = "this is not a manifest that `genre-dist pack` wrote; pack the shards again, or fetch them again"

Bits = Annotated[str, Predicate(str.isdecimal)]
"""A number of an index's `has`, as JSON has it as a key."""


class Moments(TypedDict):
    """Mean and standard deviation of each number of a field over the train split, to standardise it."""

    mean: list[float]
    """0 where no sample has the number."""
    std: list[float]
    """Above 0; 1 where all samples have the same number, or none."""


@dataclass(frozen=True, kw_only=True)
class SampleShard:
    """One tar: its samples by their fields, its size and checksum. Raises ValueError for inconsistent counts."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    file: FileName
    split: str
    samples: Annotated[int, Interval(ge=0, le=2**32)]
    has: dict[Bits, Count]
    """Bits of the fields (as `Schema.bit` has them) -> samples that have exactly these; only counts above 0."""
    bytes: Count
    sha256: Sha256

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"{self.file} is of an unknown split `{self.split}`")
        if not self.file.endswith(".tar"):
            raise ValueError(f"{self.file} is not named as a tar")
        if sum(self.has.values()) != self.samples:
            raise ValueError(f"{self.file} cannot have {self.samples:,} samples, as its counts by fields sum to others")

    @property
    def index_file(self) -> str:
        """Name of the index beside the tar."""
        return f"{self.file.removesuffix('.tar')}.index.npy"

    def count(self, bits: int) -> int:
        """How many samples have all fields of these bits."""
        return sum(count for has, count in self.has.items() if int(has) & bits == bits)


@dataclass(frozen=True, kw_only=True)
class SampleContents:
    """The contents of `manifest.json`. Raises ValueError if they are inconsistent."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    format: Literal["genre_dist shards"] = "genre_dist shards"
    schema: Literal[2] = 2
    declared: Schema
    """With the classes, in the order of logits and label arrays."""
    image: Image
    """How images were packed, if there are any."""
    text: Text
    """How texts were packed; all fields share one vocabulary, of two words if there are none."""
    numbers: dict[str, Moments]
    """Field of numbers -> what standardises it."""
    require: tuple[str, ...]
    """Fields that every packed sample has."""
    split_rule: PrintableText
    label_counts: dict[str, list[Count]]
    """Split -> samples of each class."""
    left_out: dict[PrintableText, Count]
    """Reason -> samples that were not packed."""
    shards: tuple[SampleShard, ...]

    def __post_init__(self) -> None:
        declared = self.declared
        all_bits = declared.bits(tuple(declared.by_name))
        declared.bits(self.require)
        if len(declared.labels.classes) < 2:
            raise ValueError("there are fewer than two classes")
        if again := _twice(shard.file for shard in self.shards):
            raise ValueError(f"{again[0]} is there twice")
        for shard in self.shards:
            if any(int(bits) & ~all_bits for bits in shard.has):
                raise ValueError(f"{shard.file} has samples with fields that are not declared")
        lengths = {split: len(counts) for split, counts in self.label_counts.items()}
        if lengths != dict.fromkeys(SPLITS, len(declared.labels.classes)):
            raise ValueError(f"label_counts has not one number for each class of {', '.join(SPLITS)}")
        wanted = {field.name: len(field.columns) for field in declared.fields if field.kind == "numbers"}
        for what in ("mean", "std"):
            if {name: len(moments[what]) for name, moments in self.numbers.items()} != wanted:
                raise ValueError(f"numbers has not one {what} for each number of a field")
        for name, moments in self.numbers.items():
            if not all(map(math.isfinite, moments["mean"])) or not all(0 < std < math.inf for std in moments["std"]):
                raise ValueError(f"numbers of {name}: no finite mean, or a std that is not above 0")


@dataclass(frozen=True, kw_only=True)
class SampleManifest(SampleContents):
    """A manifest and its folder."""

    folder: AnyPath

    def shards_of(self, split: str) -> tuple[SampleShard, ...]:
        """The shards of a split in stored order. Raises ValueError for a split that does not exist."""
        if split not in SPLITS:
            raise ValueError(f"there is no split `{split}`; the splits are {', '.join(SPLITS)}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def samples(self, split: str, fields: tuple[str, ...] = ()) -> int:
        """How many samples of a split have all of these fields. Raises ValueError for an unknown field."""
        bits = self.declared.bits(fields)
        return sum(shard.count(bits) for shard in self.shards_of(split))

    @property
    def fingerprint(self) -> str:
        """Identifies the data: equal for equal shards, schema and vocabulary, wherever they are stored."""
        parts = [self.declared.to_dict(), self.text["vocabulary_sha256"], [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        contents = asdict(self)
        del contents["folder"]
        return contents


def save_sample_manifest(manifest: SampleManifest) -> None:
    """Write `manifest.json` into its folder, atomically."""
    with atomic_file(manifest.folder / FILE, "w") as file:
        json.dump(manifest.to_dict(), file, indent=1)


def load_sample_manifest(folder: AnyPath | str) -> SampleManifest:
    """Read the manifest of a folder of such shards, which may lie behind a URL.

    Raises ValueError if it is of shards of films, or invalid, FileNotFoundError if it is missing.
    """
    folder = any_path(folder)
    path = folder / FILE
    contents = parse_json(SampleContents, read_bytes(path, LARGEST_BYTES), path, _REMEDY)
    return SampleManifest(folder=folder, **vars(contents))


def load_any_manifest(folder: AnyPath | str) -> Manifest | SampleManifest:
    """Read the manifest of a folder of shards of either kind. Raises ValueError as `load_manifest` does."""
    path = any_path(folder) / FILE
    try:
        written = read_bytes(path, LARGEST_BYTES)
        is_of_samples = parse_json(dict[str, Any], written, path, _REMEDY).get("schema") == SCHEMA_VERSION
    except (FileNotFoundError, NotADirectoryError):
        is_of_samples = False  # load_manifest says how to make shards
    return load_sample_manifest(folder) if is_of_samples else load_manifest(folder)
