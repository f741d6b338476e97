"""The texts of a split: from the shards' tokens, or as written in the catalogue that was packed."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.packing.tokenizer import WORDS, tokenizer_of
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.words import SPECIAL, load_words
from genre_dist.tars.films import catalogue_films, shard_films


class LabelledText(NamedTuple):
    """A sample for a baseline: text and labels of a film."""

    id: int
    genres: tuple[int, ...]
    """Indices into the manifest's genres."""
    tokens: NDArray[np.int32]  # [tokens], without special ones
    text: str
    fault: str | None
    """Why the film is unreadable; such a film has no genres and no words."""
    key: str = ""
    """The id as another data set than TMDB's has it."""


class Texts:
    """The films of some shards that have a text.

    Without a catalogue `text` is the known words of the shards in lower case; with it, the text as it was written.
    """

    def __init__(self, manifest: Manifest, catalogue: Path | None = None) -> None:
        self.manifest, self.catalogue = manifest, catalogue
        self.members = (manifest.declared.first("text"),)
        """The field whose texts these are: the first one."""
        self._tokenizer = tokenizer_of(manifest.folder, manifest.text)
        self.size = self._tokenizer.size
        """Number of token ids."""

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary of shards of words, in the order of its ids."""
        return list(load_words(self.manifest.folder / WORDS, self.manifest.text["vocabulary_sha256"]))

    def ids(self, split: str) -> NDArray[np.int64]:
        """The films of a split in stored order, int64 [films]."""
        return SplitIndex(self.manifest, split, self.members).all_ids()

    def read(self, split: str) -> list[LabelledText]:
        """The films of a split, in the order of the shards or of the catalogue.

        Raises ValueError if the catalogue lacks films of the shards.
        """
        wanted = set(self.ids(split).tolist())
        if self.catalogue is None:
            films = shard_films(self.manifest, [split], self.members)
        else:
            films = catalogue_films(self.catalogue, self.manifest.text["source"], posters=False)
        texts = []
        for film in films:
            if film.id in wanted:
                tokens = self._tokenizer.tokens(film.words or ())
                text = film.text or " ".join(word for word in film.words or () if word not in SPECIAL)
                texts.append(LabelledText(film.id, film.genres, tokens, text, film.fault, film.key))
        if len(texts) < len(wanted):
            samples = self.manifest.declared.samples
            raise ValueError(
                f"{self.catalogue} has {len(texts):,} of the {len(wanted):,} {samples} of the {split} split: not the "
                f"catalogue that {self.manifest.folder} was packed from"
            )
        return texts
