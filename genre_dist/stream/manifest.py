"""The manifest of a folder of shards: their contents and how they were packed. Pure data, stored as JSON."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Interval, Predicate
from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file
from genre_dist.genres import Genre
from genre_dist.storage import AnyPath, any_path, read_bytes
from genre_dist.stream.index import FLAGS
from genre_dist.validation import LARGEST_BYTES, Count, FileName, Sha256, parse_json

SCHEMA = 1
FILE = "manifest.json"
SPLITS = ("train", "val", "test")
_REMEDY = "this is not a manifest that `genre-dist pack` wrote; pack the shards again, or fetch them again"

PrintableText = Annotated[str, Predicate(str.isprintable)]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: its samples by their members, its size and checksum. Raises ValueError for inconsistent counts."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    file: FileName
    split: str
    samples: Annotated[int, Interval(ge=0, le=2**32)]
    poster: Count
    """Samples with a poster."""
    overview: Count
    """Samples with a text."""
    both: Count
    """Samples with both."""
    bytes: Count
    sha256: Sha256

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"{self.file} is of an unknown split `{self.split}`")
        if not self.file.endswith(".tar"):
            raise ValueError(f"{self.file} is not named as a tar")
        some = self.poster + self.overview - self.both
        if not self.both <= min(self.poster, self.overview) <= some <= self.samples:
            raise ValueError(
                f"{self.file} cannot have {self.samples:,} samples, {self.poster:,} with a poster, {self.overview:,} "
                f"with a text, {self.both:,} with both"
            )

    @property
    def index_file(self) -> str:
        """Name of the index beside the tar."""
        return f"{self.file.removesuffix('.tar')}.index.npy"

    @property
    def identity(self) -> str:
        """Identifies the tar's bytes, wherever they are stored."""
        return self.sha256

    def mask(self, members: tuple[str, ...]) -> int:
        """These members as bits of the index's `has`."""
        return sum(FLAGS[member] for member in members)

    def count(self, members: tuple[str, ...]) -> int:
        """How many samples have all of these members. Raises ValueError for an unknown member."""
        unknown = set(members) - {"poster", "overview"}
        if unknown:
            raise ValueError(f"films have poster and overview, not {', '.join(sorted(unknown))}")
        if set(members) == {"poster", "overview"}:
            return self.both
        return {"poster": self.poster, "overview": self.overview}[members[0]] if members else self.samples


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


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of `manifest.json`. Raises ValueError if they are inconsistent."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    format: Literal["genre_dist shards"] = "genre_dist shards"
    schema: Literal[1] = 1
    genres: tuple[Genre, ...]
    """The labels, in the order of logits and label arrays."""
    image: Image
    text: Text
    require: tuple[str, ...]
    """Members that every packed sample has."""
    split_rule: PrintableText
    genre_counts: dict[str, list[Count]]
    """Split -> samples of each genre."""
    left_out: dict[PrintableText, Count]
    """Reason -> films that were not packed."""
    shards: tuple[Shard, ...]
    encoding: Encoding | None = None

    def __post_init__(self) -> None:
        if not self.genres or not all(genre.name.isprintable() for genre in self.genres):
            raise ValueError("there are no genres, or some without a proper name")
        if unknown := set(self.require) - set(FLAGS):
            raise ValueError(f"films have {' and '.join(FLAGS)}, not {min(unknown)!r}")
        for what in ("id", "name"):
            if again := _twice(getattr(genre, what) for genre in self.genres):
                raise ValueError(f"two genres have the {what} {again[0]!r}")
        if again := _twice(shard.file for shard in self.shards):
            raise ValueError(f"{again[0]} is there twice")
        if {split: len(counts) for split, counts in self.genre_counts.items()} != dict.fromkeys(
            SPLITS, len(self.genres)
        ):
            raise ValueError(f"genre_counts has not one number for each genre of {', '.join(SPLITS)}")


def _twice(values: Iterable[Any]) -> list[Any]:
    """Values that occur more than once."""
    seen: set[Any] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]


@dataclass(frozen=True, kw_only=True)
class Manifest(Contents):
    """A manifest and its folder."""

    folder: AnyPath

    def shards_of(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split in stored order. Raises ValueError for a split that does not exist."""
        if split not in SPLITS:
            raise ValueError(f"there is no split `{split}`; the splits are {', '.join(SPLITS)}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def samples(self, split: str, members: tuple[str, ...] = ()) -> int:
        """How many samples of a split have all of these members."""
        return sum(shard.count(members) for shard in self.shards_of(split))

    @property
    def fingerprint(self) -> str:
        """Identifies the data: equal for equal shards, genres and vocabulary, wherever they are stored.

        Shards of encodings have the fingerprint of the encoded shards: a run can continue with either.
        """
        if self.encoding is not None:
            return str(self.encoding["source"])
        contents = self.to_dict()
        parts = [contents["genres"], contents["text"].get("vocabulary_sha256"), [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        contents = dataclasses.asdict(self)
        del contents["folder"]
        if self.encoding is None:
            del contents["encoding"]
        contents["genres"] = [genre._asdict() for genre in self.genres]
        return contents


def save_manifest(manifest: Manifest) -> None:
    """Write `manifest.json` into its folder, atomically."""
    with atomic_file(manifest.folder / FILE, "w") as file:
        json.dump(manifest.to_dict(), file, indent=1)


class _Head(TypedDict):
    format: object
    schema: object


def load_manifest(folder: AnyPath | str) -> Manifest:
    """Read the manifest of a folder of shards, which may lie behind a URL (https://, s3://, ...).

    Raises ValueError if it is missing (the message says how to make shards), of another schema version, or invalid:
    every file name must be one of its folder, every number a possible count.
    """
    folder = any_path(folder)
    path = folder / FILE
    try:
        written = read_bytes(path, LARGEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"no shards in {folder} ({FILE} is missing). Make some:  genre-dist sample --films 2000 --out catalogue  "
            f"&&  genre-dist pack --catalogue catalogue --out {folder}   (or `genre-dist import` your own films first)"
        ) from None
    schema = parse_json(_Head, written, path, _REMEDY)["schema"]
    if isinstance(schema, int | str) and schema != SCHEMA:
        raise ValueError(
            f"{path}: written with schema version {schema!r}, this version reads {SCHEMA}; pack the shards again, or "
            "use the genre_dist that packed them"
        )
    contents = parse_json(Contents, written, path, _REMEDY)
    return Manifest(folder=folder, **vars(contents))
