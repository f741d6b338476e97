"""The manifest of a folder of shards: what is in them and how they were made. Pure data, read and written as JSON."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from genre_dist.atomic import atomic_file
from genre_dist.genres import Genre
from genre_dist.storage import Place, place, read_bytes
from genre_dist.stream.index import FLAGS

SCHEMA = 1
FILE = "manifest.json"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: its counts by members present, its size and checksum."""

    file: str
    split: str
    samples: int
    poster: int
    """Samples with a poster."""
    overview: int
    """Samples with a text."""
    both: int
    """Samples with both."""
    bytes: int
    sha256: str

    @property
    def index_file(self) -> str:
        """Name of its index, beside it."""
        return f"{self.file.removesuffix('.tar')}.index.npy"

    @property
    def identity(self) -> str:
        """A name for its bytes, wherever they lie."""
        return self.sha256

    def mask(self, members: tuple[str, ...]) -> int:
        """These members as bits of the index's `has`."""
        return sum(FLAGS[member] for member in members)

    def count(self, members: tuple[str, ...]) -> int:
        """How many samples have all of these members. Raises ValueError for a member that films never have."""
        unknown = set(members) - {"poster", "overview"}
        if unknown:
            raise ValueError(f"films have poster and overview, not {', '.join(sorted(unknown))}")
        if set(members) == {"poster", "overview"}:
            return self.both
        return {"poster": self.poster, "overview": self.overview}[members[0]] if members else self.samples


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` holds, and the folder it lies in."""

    folder: Place
    genres: tuple[Genre, ...]
    """The labels, in the order of every logit and label list."""
    image: dict[str, Any]
    """`size` (side of the square, pixels), `fit`, `quality`."""
    text: dict[str, Any]
    """`source` (overview, title or both), `vocabulary` (file), `words`, `vocabulary_sha256`, `vectors` (file or null),
    `dim` (width of the vectors or null)."""
    require: tuple[str, ...]
    """Members a film had to have to be packed."""
    split_rule: str
    genre_counts: dict[str, list[int]]
    """Per split, films of each genre."""
    left_out: dict[str, int]
    """Films that were not packed, by reason."""
    shards: tuple[Shard, ...]
    encoding: dict[str, Any] | None = None
    """Of shards of encodings: `size` (numbers a film), `key`, `source` (fingerprint of the shards they are made of)."""

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
        """Identifies the data: the same for the same shards, genres and vocabulary, wherever they lie.

        Shards of encodings are identified by those they are made of: a run can be continued with them or without.
        """
        if self.encoding is not None:
            return str(self.encoding["source"])
        told = self.to_dict()
        parts = [told["genres"], told["text"].get("vocabulary_sha256"), [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        told = dataclasses.asdict(self)
        del told["folder"]
        if self.encoding is None:
            del told["encoding"]
        told["genres"] = [genre._asdict() for genre in self.genres]
        return {"format": "genre_dist shards", "schema": SCHEMA} | told


def save_manifest(manifest: Manifest) -> None:
    """Write `manifest.json` into its folder: whole or not at all."""
    with atomic_file(manifest.folder / FILE, "w") as file:
        json.dump(manifest.to_dict(), file, indent=1)


def load_manifest(folder: Place | str) -> Manifest:
    """Read the manifest of a folder of shards, which may lie behind a URL (https://, s3://, ...).

    Raises ValueError if there is none, saying how shards are made, or if another version of the schema wrote it.
    """
    folder = place(folder)
    path = folder / FILE
    try:
        written = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"no shards in {folder} ({FILE} is missing). Make some:  genre-dist sample --films 2000 --out catalogue  "
            f"&&  genre-dist pack --catalogue catalogue --out {folder}   (or `genre-dist import` your own films first)"
        ) from None
    try:
        told = json.loads(written)
        schema = told.pop("schema")
        told.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest of genre_dist ({error}); pack the shards again") from None
    if schema != SCHEMA:
        raise ValueError(
            f"{path}: written with schema version {schema}, this version reads {SCHEMA}; pack the shards again, or use "
            "the genre_dist that packed them"
        )
    try:
        manifest = Manifest(
            folder=folder,
            **told
            | {
                "genres": tuple(Genre(**genre) for genre in told["genres"]),
                "require": tuple(told["require"]),
                "shards": tuple(Shard(**shard) for shard in told["shards"]),
            },
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: a field is missing or unknown ({error}); pack the shards again") from None
    for shard in manifest.shards:
        if shard.split not in SPLITS:
            raise ValueError(f"{path}: {shard.file} is of an unknown split `{shard.split}`; pack the shards again")
    return manifest
