"""What manifests of both versions share: how images and texts were packed, and the questions they answer."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NotRequired, cast

from annotated_types import Ge, Interval, Predicate
from typing_extensions import TypedDict

from genre_dist.genres import Genre
from genre_dist.schema import TMDB, Schema
from genre_dist.storage import AnyPath
from genre_dist.validation import Count, FileName, Sha256

FILE = "manifest.json"
SPLITS = ("train", "val", "test")

PrintableText = Annotated[str, Predicate(str.isprintable)]


class Image(TypedDict):
    """How the images were packed."""

    size: Annotated[int, Interval(ge=1, le=4096)]
    """Side of the square images in pixels."""
    fit: PrintableText
    quality: int


class Text(TypedDict):
    """How the texts were packed."""

    source: PrintableText
    """overview, title or both."""
    vocabulary: FileName
    words: Annotated[int, Interval(ge=2, le=2**31 - 1)]
    vocabulary_sha256: Sha256
    vectors: FileName | None
    dim: Annotated[int, Ge(1)] | None
    """Width of the vectors."""
    vectors_sha256: NotRequired[Sha256]
    """Checksum of the vectors, row by row; older shards lack it."""
    tokenizer: NotRequired[Literal["tokenizers"]]
    """The library whose file `vocabulary` is, with `words` ids; absent if it is a list of words."""
    padding: NotRequired[Count | None]
    """The tokenizer's padding token; None if it has none. Batches are padded with 0 all the same."""
    closing: NotRequired[Annotated[int, Interval(ge=0, le=8)]]
    """Special tokens that end every text; a text that is cut keeps them."""


class Encoding(TypedDict):
    """Metadata of shards of encodings."""

    size: Annotated[int, Interval(ge=1, le=2**24)]
    """Width of an encoding."""
    key: PrintableText
    source: PrintableText
    """Fingerprint of the encoded shards."""


for _kind in (Image, Text, Encoding):
    _kind.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[union-attr]


class Moments(TypedDict):
    """Mean and standard deviation of each number of a field over the train split, to standardise it."""

    mean: list[float]
    """0 where no sample has the number."""
    std: list[float]
    """Above 0; 1 where all samples have the same number, or none."""


class Manifest:
    """The manifest of a folder of shards, of films or of a declared data set."""

    folder: AnyPath
    declared: Schema
    """What a sample has, its id and its labels."""
    genres: tuple[Genre, ...]
    """The labels, in the order of logits and label arrays."""
    genre_counts: dict[str, list[int]]
    """Split -> samples of each label."""
    image: Image
    text: Text
    numbers: dict[str, Moments]
    """Field of numbers -> what standardises it."""
    require: tuple[str, ...]
    """Fields that every packed sample has."""
    split_rule: str
    left_out: dict[str, int]
    """Reason -> samples that were not packed."""
    shards: tuple[Any, ...]
    """A `Shard` or a `SampleShard` each."""
    encoding: Encoding | None
    """Set for shards of encodings."""

    def shards_of(self, split: str) -> tuple[Any, ...]:
        """The shards of a split in stored order. Raises ValueError for a split that does not exist."""
        if split not in SPLITS:
            raise ValueError(f"there is no split `{split}`; the splits are {', '.join(SPLITS)}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def mask(self, shard: Any, fields: tuple[str, ...]) -> int:
        """These fields as bits of the index's `has`. Raises ValueError for an unknown field."""
        return self.declared.bits(fields)

    def count(self, shard: Any, fields: tuple[str, ...], any_of: bool = False) -> int:
        """How many samples of a shard have all of these fields, or one of them."""
        return chosen_count(shard.by_fields, self.declared.bits(fields), any_of)

    def samples(self, split: str, fields: tuple[str, ...] = (), any_of: bool = False) -> int:
        """How many samples of a split have all of these fields, or one of them."""
        return sum(self.count(shard, fields, any_of) for shard in self.shards_of(split))

    def patterns(self, split: str, fields: tuple[str, ...]) -> dict[tuple[str, ...], int]:
        """Samples of a split by the fields that they have among these."""
        bits = {name: self.declared.bit(name) for name in fields}
        counts: Counter[tuple[str, ...]] = Counter()
        for shard in self.shards_of(split):
            for has, count in shard.by_fields.items():
                counts[tuple(name for name, bit in bits.items() if has & bit)] += count
        return +counts

    @property
    def fingerprint(self) -> str:
        """Identifies the data: equal for equal shards, labels and vocabulary, wherever they are stored.

        Shards of encodings have the fingerprint of the encoded shards: a run can continue with either.
        """
        if self.encoding is not None:
            return str(self.encoding["source"])
        parts = [self.declared_parts(), self.text.get("vocabulary_sha256"), [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def declared_parts(self) -> Any:
        """The labels, or the schema, as a part of the fingerprint."""
        raise NotImplementedError

    @property
    def packed(self) -> "Manifest":
        """The manifest of which shards of encodings are made: with files of their own folder."""
        return self

    @property
    def label_ids(self) -> list[Any]:
        """The labels as the members .json name them: by TMDB's ids, or by names."""
        return [genre.id if self.declared == TMDB else genre.name for genre in self.genres]

    def to_dict(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        contents = dataclasses.asdict(cast(Any, self))
        del contents["folder"]
        if self.encoding is None:
            del contents["encoding"]
        return contents


class TarEntry:
    """What the manifest's entries for tars share, of films or of a declared data set."""

    file: str
    split: str
    sha256: str

    def check_names(self) -> None:
        """Raise ValueError for an unknown split, and for a file that is not named as a tar."""
        if self.split not in SPLITS:
            raise ValueError(f"{self.file} is of an unknown split `{self.split}`")
        if not self.file.endswith(".tar"):
            raise ValueError(f"{self.file} is not named as a tar")

    @property
    def index_file(self) -> str:
        """Name of the index beside the tar."""
        return f"{self.file.removesuffix('.tar')}.index.npy"

    @property
    def identity(self) -> str:
        """Identifies the tar's bytes, wherever they are stored."""
        return self.sha256


def chosen_count(by_fields: dict[int, int], mask: int, any_of: bool) -> int:
    """How many samples have all bits of a mask, or one of them, given their counts by bits."""
    return sum(count for has, count in by_fields.items() if (has & mask > 0 if any_of else has & mask == mask))


def twice(values: Iterable[Any]) -> list[Any]:
    """Values that occur more than once."""
    seen: set[Any] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
