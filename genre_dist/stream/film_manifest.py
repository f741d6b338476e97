"""The manifest of shards of TMDB's films: `manifest.json` of schema version 1."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from genre_dist.genres import Genre
from genre_dist.schema import TMDB, Schema
from genre_dist.storage import AnyPath
from genre_dist.stream.index import FLAGS, OVERVIEW, POSTER
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


@dataclass(frozen=True, kw_only=True)
class Shard(TarEntry):
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
        self.check_names()
        some = self.poster + self.overview - self.both
        if not self.both <= min(self.poster, self.overview) <= some <= self.samples:
            raise ValueError(
                f"{self.file} cannot have {self.samples:,} samples, {self.poster:,} with a poster, {self.overview:,} "
                f"with a text, {self.both:,} with both"
            )

    @property
    def by_fields(self) -> dict[int, int]:
        """Samples by their value of the index's `has`."""
        some = {POSTER: self.poster - self.both, OVERVIEW: self.overview - self.both, POSTER | OVERVIEW: self.both}
        return some | {0: self.samples - sum(some.values())}

    @staticmethod
    def counted(has: NDArray[np.uint16]) -> dict[str, Any]:
        """The entries that count samples by their `has` of the index, [samples]."""
        poster, overview = (has & POSTER) > 0, (has & OVERVIEW) > 0
        counts = {"poster": poster, "overview": overview, "both": poster & overview}
        return {name: int(count.sum()) for name, count in counts.items()}


@dataclass(frozen=True, kw_only=True)
class FilmContents:
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
            if again := twice(getattr(genre, what) for genre in self.genres):
                raise ValueError(f"two genres have the {what} {again[0]!r}")
        if again := twice(shard.file for shard in self.shards):
            raise ValueError(f"{again[0]} is there twice")
        if {split: len(counts) for split, counts in self.genre_counts.items()} != dict.fromkeys(
            SPLITS, len(self.genres)
        ):
            raise ValueError(f"genre_counts has not one number for each genre of {', '.join(SPLITS)}")


@dataclass(frozen=True, kw_only=True)
class FilmManifest(FilmContents, Manifest):
    """The manifest of shards of films, and its folder."""

    folder: AnyPath

    @property
    def declared(self) -> Schema:  # type: ignore[override]
        return TMDB

    @property
    def numbers(self) -> dict[str, Moments]:  # type: ignore[override]
        return {}

    def declared_parts(self) -> Any:
        return [genre._asdict() for genre in self.genres]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"genres": self.declared_parts()}
