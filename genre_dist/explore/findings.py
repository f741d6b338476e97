"""From counts to statistics: plain data for JSON, figures and the page. Pure."""

import math
import warnings
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import SpectralCoclustering
from wordcloud import STOPWORDS

from genre_dist.explore.counting import Counts
from genre_dist.schema import plural, with_article
from genre_dist.stream.manifest import SPLITS

THRESHOLDS = (20, 30, 50, 100)
"""Text lengths in words; the study counted the texts of at least each length."""
CLUSTERS = 6
FREQUENT, DISTINCTIVE = 150, 12
PRIOR_WORDS = 1000
"""The prior in `distinctive`: this many pseudo-words a genre, distributed as in all texts."""


def findings(counts: Counts) -> dict[str, Any]:
    """All statistics of the exploration."""
    films = int(counts.films.sum())
    return {
        "films": films,
        "films_by_split": dict(zip(SPLITS, counts.films.tolist(), strict=True)),
        "left_out": {what: counts.lacking[what] for what in (counts.unlabelled, "unreadable")},
        "genres": {
            name: {"films": int(row.sum()), "share": _ratio(row.sum(), films)}
            | dict(zip(SPLITS, row.tolist(), strict=True))
            for name, row in zip(counts.genres, counts.by_genre, strict=True)
        },
        "genres_per_film": {
            "mean": _ratio((counts.labels * np.arange(len(counts.labels))).sum(), films),
            "films": {str(number): int(count) for number, count in enumerate(counts.labels) if count},
        },
        "text_words": _lengths(counts),
        "together": _cooccurrence(counts),
        "months": {
            "films": counts.months.tolist(),
            "without_month": counts.lacking["without a month"],
            "share": {
                name: [_ratio(count, total) for count, total in zip(row, counts.months, strict=True)]
                for name, row in zip(counts.genres, counts.genre_months, strict=True)
            },
        },
        "words": {
            name: {"frequent": frequent(counter), "distinctive": distinctive(counter, counts.all_words)}
            for name, counter in zip(counts.genres, counts.words, strict=True)
        },
        "posters": _posters(counts),
    }


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _lengths(counts: Counts) -> dict[str, Any]:
    lengths = counts.lengths
    texts = int(lengths.sum())
    longest = int(np.flatnonzero(lengths)[-1]) if texts else 0
    return {
        "films": texts,
        "without_text": counts.lacking["without a text"],
        "mean": _ratio((lengths * np.arange(len(lengths))).sum(), texts),
        "quantiles": quantiles(lengths),
        "longest": longest,
        "at_least": {str(least): int(lengths[least:].sum()) for least in THRESHOLDS},
        "texts_of_length": lengths[: longest + 1].tolist(),
    }


def quantiles(histogram: NDArray[np.int64]) -> dict[str, int] | None:
    """Quantiles of a histogram over the integers from 0; each is a value that occurred. None if it is empty."""
    ends = np.cumsum(histogram)
    if not ends[-1]:
        return None
    return {f"{share:g}": int(np.searchsorted(ends, share * ends[-1])) for share in (0.05, 0.25, 0.5, 0.75, 0.95)}


def _cooccurrence(counts: Counts) -> dict[str, Any]:
    """The co-occurrence matrix, with genres in the order of their clusters."""
    clusters = cocluster(counts.together)
    order = [index for cluster in clusters for index in cluster]
    return {
        "genres": [counts.genres[index] for index in order],
        "films": counts.together[np.ix_(order, order)].tolist(),
        "clusters": [[counts.genres[index] for index in cluster] for cluster in clusters],
    }


def cocluster(together: NDArray[np.int64], clusters: int = CLUSTERS) -> list[list[int]]:
    """Clusters of genres that co-occur, as indices; the genres of no film form the last cluster.

    Spectral co-clustering (Dhillon 2001) of the symmetric matrix, as in the study; rows and columns then have
    the same clusters. With no more genres than clusters, each genre is a cluster.
    """
    present = np.flatnonzero(together.diagonal() > 0)
    absent = np.flatnonzero(together.diagonal() == 0).tolist()
    if len(present) > clusters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # genres that never co-occur leave eigenvectors undetermined
            model = SpectralCoclustering(n_clusters=clusters, random_state=0)
            model.fit(together[np.ix_(present, present)].astype(float))
        labels = np.asarray(model.row_labels_)
        groups = [present[labels == label].tolist() for label in range(clusters)]
    else:
        groups = [[index] for index in present.tolist()]
    groups = [cluster for cluster in groups if cluster]
    return [*groups, absent] if absent else groups


def frequent(counter: Counter[str], most: int = FREQUENT) -> dict[str, int]:
    """The most frequent words that are neither stop words nor numbers nor single letters."""
    kept = {word: count for word, count in counter.items() if _is_content_word(word)}
    return dict(sorted(kept.items(), key=lambda item: (-item[1], item[0]))[:most])


def distinctive(counter: Counter[str], everywhere: Counter[str], most: int = DISTINCTIVE) -> dict[str, float]:
    """Words that stand out against all other texts, with their z-scores.

    Log-odds ratio with an informative Dirichlet prior: Monroe, Colaresi and Quinn 2008, Fightin' Words, equations 16
    and 22.
    """
    here, total = sum(counter.values()), sum(everywhere.values())
    elsewhere = total - here
    if not here or elsewhere <= 0:
        return {}
    scores = {}
    for word, count in counter.items():
        other = everywhere[word] - count
        if not _is_content_word(word) or other < 0:  # `forget_rare` dropped this rare word from one counter
            continue
        prior = PRIOR_WORDS * everywhere[word] / total
        one, two = count + prior, other + prior
        odds = math.log(one / (here + PRIOR_WORDS - one)) - math.log(two / (elsewhere + PRIOR_WORDS - two))
        scores[word] = round(odds / math.sqrt(1 / one + 1 / two), 3)
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:most])


def _is_content_word(word: str) -> bool:
    return len(word) > 1 and word not in STOPWORDS and not word.isnumeric()


def _posters(counts: Counts) -> dict[str, Any]:
    looked_at = {name: int(row.sum()) for name, row in zip(counts.genres, counts.brightness, strict=True)}
    return {
        "without": counts.lacking[f"without {with_article(counts.image)}"],
        "unreadable": counts.lacking[f"with an unreadable {counts.image}"],
        "not_looked_at": counts.lacking[f"{plural(counts.image)} not looked at"],
        "by_genre": {
            name: {
                "posters": looked_at[name],
                "brightness": quantiles(counts.brightness[index]),
                "short_side": quantiles(counts.short_sides[index]),
            }
            for index, name in enumerate(counts.genres)
        },
    }
