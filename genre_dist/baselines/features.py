"""Features of texts, most of them sparse. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, HashingVectorizer
from sklearn.preprocessing import normalize

from genre_dist.baselines.texts import LabelledText
from genre_dist.stream.sample import UNKNOWN

HASHED_COLUMNS = 1 << 20
"""Hash buckets for word n-grams, and as many for character n-grams."""


def word_counts(films: Sequence[LabelledText], words: int) -> sp.csr_matrix:
    """Bag of words, float32 [films, words]; <pad> and <unk> are not counted."""
    kept = [film.tokens[film.tokens > UNKNOWN] for film in films]
    ends = np.cumsum([0, *map(len, kept)])
    columns = np.concatenate([*kept, np.empty(0, np.int32)])
    counts = sp.csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape=(len(films), words))
    counts.sum_duplicates()
    return counts


def mean_vectors(
    films: Sequence[LabelledText], vectors: NDArray[np.float32], ignored: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The mean vector of each text's words without stop words, float32 [films, dim]; zeros if no word is left."""
    means = np.zeros((len(films), vectors.shape[1]), np.float32)
    for row, film in zip(means, films, strict=True):
        tokens = film.tokens[~ignored[film.tokens]]
        if len(tokens):
            row[:] = vectors[tokens].mean(axis=0)
    return means


def stop_words(words: Iterable[str]) -> NDArray[np.bool_]:
    """The mask of uninformative words: <pad>, <unk> and scikit-learn's English stop words, bool [words]."""
    return np.array([number <= UNKNOWN or word in ENGLISH_STOP_WORDS for number, word in enumerate(words)])


def ngram_counts(films: Sequence[LabelledText]) -> sp.csr_matrix:
    """Hashed word uni- and bigrams, then character 3- to 5-grams inside words, float32 [films, 2 HASHED_COLUMNS]."""
    texts = [film.text for film in films]
    options: dict[str, Any] = {"n_features": HASHED_COLUMNS, "alternate_sign": False, "norm": None, "dtype": np.float32}
    word = HashingVectorizer(ngram_range=(1, 2), **options)
    character = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **options)
    return sp.hstack([word.transform(texts), character.transform(texts)], format="csr")


class Columns(NamedTuple):
    """The kept columns and their weights, learned from the train split."""

    kept: NDArray[np.int64]  # [columns] ascending
    idf: NDArray[np.float32] | None  # [columns]; None: plain counts
    sublinear: bool
    """Whether a count c becomes 1 + log c."""
    blocks: tuple[int, ...]
    """Ends of the blocks of columns; each block is normalised to length 1."""

    def __call__(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Weighted features, float32 [films, columns]."""
        kept = counts[:, self.kept]
        if self.idf is None:
            return kept
        if self.sublinear:
            kept.data = 1 + np.log(kept.data)
        weighted = kept @ sp.diags(self.idf)
        starts = (0, *self.blocks[:-1])
        parts = [normalize(weighted[:, a:b]) for a, b in zip(starts, self.blocks, strict=True)]
        return (parts[0] if len(parts) == 1 else sp.hstack(parts, format="csr")).astype(np.float32)


def choose_columns(
    counts: sp.csr_matrix,
    *,
    min_films: int = 1,
    min_share: float = 0.0,
    max_share: float = 1.0,
    idf: bool,
    sublinear: bool = False,
    blocks: tuple[int, ...] = (),
) -> Columns:
    """Columns that neither too few nor too many films have; with `idf`, smoothed as in scikit-learn."""
    films, width = counts.shape
    with_column = np.bincount(counts.indices, minlength=width)
    least = max(min_films, min_share * films)
    kept = np.flatnonzero((with_column >= least) & (with_column <= max_share * films))
    weights = (np.log((1 + films) / (1 + with_column[kept])) + 1).astype(np.float32) if idf else None
    return Columns(kept, weights, sublinear, tuple(int(np.searchsorted(kept, end)) for end in blocks or (width,)))
