"""The manifest of shards that were packed from a declared data set: `manifest.json` of schema version 2.

It carries the declared schema with its classes, and counts the samples of a shard by the fields they have.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval, Predicate
from numpy.typing import NDArray

from genre_dist.genres import Genre
from genre_dist.schema import Schema
from genre_dist.storage import AnyPath
from genre_dist.stream.manifest_base import (
    SPLITS,
    Encoding,
    Image,
    Manifest,
    Moments,
    PrintableText,
    TarEntry,
    Text,
    twice,
)
from genre_dist.validation import Count, FileName, Sha256

Bits = Annotated[str, Predicate(str.isdecimal)]
"""A number of an index's `has`, as JSON has it as a key."""


@dataclass(frozen=True, kw_only=True)
class SampleShard(TarEntry):
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
        self.check_names()
        if sum(self.has.values()) != self.samples:
            raise ValueError(f"{self.file} cannot have {self.samples:,} samples, as its counts by fields sum to others")

    @property
    def by_fields(self) -> dict[int, int]:
        """Samples by their value of the index's `has`."""
        return {int(bits): count for bits, count in self.has.items()}

    @staticmethod
    def counted(has: NDArray[np.uint16]) -> dict[str, Any]:
        """The entries that count samples by their `has` of the index, [samples]."""
        bits, counts = np.unique(has, return_counts=True)
        return {"has": {str(bit): count for bit, count in zip(bits.tolist(), counts.tolist(), strict=True)}}


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
    encoding: Encoding | None = None

    def __post_init__(self) -> None:
        declared = self.declared
        all_bits = declared.bits(tuple(declared.by_name))
        declared.bits(self.require)
        if len(declared.labels.classes) < 2:
            raise ValueError("there are fewer than two classes")
        if again := twice(shard.index_file for shard in self.shards):
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
class SampleManifest(SampleContents, Manifest):
    """A manifest and its folder."""

    folder: AnyPath

    @property
    def genres(self) -> tuple[Genre, ...]:  # type: ignore[override]
        return tuple(Genre(number, name) for number, name in enumerate(self.declared.labels.classes))

    @property
    def genre_counts(self) -> dict[str, list[int]]:  # type: ignore[override]
        return self.label_counts

    def declared_parts(self) -> Any:
        return self.declared.to_dict()
