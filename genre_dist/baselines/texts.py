"""The texts of a split: from the shards' tokens, or as written in the catalogue that was packed."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.packing.films import catalogue_films, shard_films
from genre_dist.packing.vocabulary import encode
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.sample import UNKNOWN
from genre_dist.stream.words import load_words

MEMBERS = ("overview",)


class LabelledText(NamedTuple):
    """A sample for a baseline: text and labels of a film."""

    id: int
    genres: tuple[int, ...]
    """Indices into the manifest's genres."""
    tokens: NDArray[np.int32]  # [words]
    text: str
    fault: str | None
    """Why the film is unreadable; such a film has no genres and no words."""


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

    def read(self, split: str) -> list[LabelledText]:
        """The films of a split, in the order of the shards or of the catalogue.

        Raises ValueError if the catalogue lacks films of the shards.
        """
        wanted, words = set(self.ids(split).tolist()), self.words
        if self.catalogue is None:
            films = shard_films(self.manifest, [split], MEMBERS)
        else:
            films = catalogue_films(self.catalogue, self.manifest.text["source"], posters=False)
        texts = []
        for film in films:
            if film.id in wanted:
                tokens = encode(film.words or (), self.ids_of_words)
                text = film.text or " ".join(words[token] for token in tokens.tolist() if token > UNKNOWN)
                texts.append(LabelledText(film.id, film.genres, tokens, text, film.fault))
        if len(texts) < len(wanted):
            samples = self.manifest.declared.samples
            raise ValueError(
                f"{self.catalogue} has {len(texts):,} of the {len(wanted):,} {samples} of the {split} split: not the "
                f"catalogue that {self.manifest.folder} was packed from"
            )
        return texts
