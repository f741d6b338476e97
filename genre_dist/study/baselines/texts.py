"""The texts of a split: from the shards' tokens, or as they stand in the catalogue they were packed from."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.prepare.vocabulary import encode
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.sample import UNKNOWN
from genre_dist.stream.words import load_words
from genre_dist.study.films import catalogue_films, packed_films

MEMBERS = ("overview",)


class Text(NamedTuple):
    """What a baseline sees of a film."""

    id: int
    genres: tuple[int, ...]
    """Places in the manifest's list."""
    tokens: NDArray[np.int32]  # [words]
    text: str
    fault: str | None
    """Why it could not be read; then it has no genres and no words."""


class Texts:
    """The films of some shards that have a text.

    Without a catalogue `text` is the known words of the shards in lower case; with it, the text as it was written.
    """

    def __init__(self, manifest: Manifest, catalogue: Path | None = None) -> None:
        self.manifest, self.catalogue = manifest, catalogue
        self.ids_of_words = load_words(
            manifest.folder / manifest.text["vocabulary"], manifest.text["vocabulary_sha256"]
        )

    @cached_property
    def words(self) -> list[str]:
        return list(self.ids_of_words)

    def ids(self, split: str) -> NDArray[np.int64]:
        """The films of a split in stored order, int64 [films]."""
        return SplitIndex(self.manifest, split, MEMBERS).all_ids()

    def read(self, split: str) -> list[Text]:
        """The films of a split, in the order of the shards or of the catalogue.

        Raises ValueError if the catalogue lacks films of the shards.
        """
        return list(self._packed(split) if self.catalogue is None else self._written(self.catalogue, split))

    def _packed(self, split: str) -> Iterator[Text]:
        words = self.words
        for film in packed_films(self.manifest, [split], MEMBERS):
            tokens = film.tokens if film.tokens is not None else np.empty(0, np.int32)
            text = " ".join(words[token] for token in tokens.tolist() if token > UNKNOWN)
            yield Text(film.id, film.genres, tokens, text, film.fault)

    def _written(self, catalogue: Path, split: str) -> Iterator[Text]:
        wanted = np.sort(self.ids(split))
        found = 0
        for film in catalogue_films(catalogue, self.manifest.text["source"], posters=False):
            place = np.searchsorted(wanted, film.id)
            if place < len(wanted) and wanted[place] == film.id:
                found += 1
                yield Text(film.id, film.genres, encode(film.words or (), self.ids_of_words), film.text, None)
        if found < len(wanted):
            raise ValueError(
                f"{catalogue} has {found:,} of the {len(wanted):,} films of the {split} split: not the catalogue that "
                f"{self.manifest.folder} was packed from"
            )
