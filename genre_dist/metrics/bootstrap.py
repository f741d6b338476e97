"""How sure figures are: every measure over many resamples of the films, the same resamples for all runs.

Efron and Tibshirani 1993, An Introduction to the Bootstrap: percentile intervals, paired where runs are compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from genre_dist.progress import progress_bar

RESAMPLES = 10_000  # with fewer no difference of a dozen models could hold after correction for all of them
CHUNK_BYTES = 32 << 20  # of one array of weights; about six of them are in use at a time

NAMED = ("micro_f1", "macro_f1", "sample_f1", "accuracy")
MEASURES = (*(f"{name}_fitted" for name in NAMED), *NAMED, "mean_average_precision", "auc")
"""`_fitted` at the thresholds fitted on val, otherwise at 0.5; the last two need no threshold."""


class Scores(NamedTuple):
    """What a run says about some films."""

    logits: NDArray[np.float32]  # [films, genres]
    labels: NDArray[np.bool_]  # [films, genres]
    thresholds: NDArray[np.float64] | None  # [genres]; None if none were fitted


class Difference(NamedTuple):
    """A figure, or how much one is above another, over resamples of the films."""

    value: float
    low: float
    high: float
    """95 % interval, from the 2.5th to the 97.5th percentile."""
    p: float
    """Two-sided: twice the share of resamples on the other side of zero, counting the films as they are as one more."""


def resampled(runs: Mapping[str, Scores], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Every measure of runs on the same films: [1 + resamples, len(MEASURES)], the films as they are first.

    A measure a run does not have is NaN: those at fitted thresholds where none were fitted, and the last two where no
    genre has films with and without it.
    """
    films = len(next(iter(runs.values())).labels)
    prepared = {name: _Prepared(scores) for name, scores in runs.items()}
    parts: dict[str, list[NDArray[np.float64]]] = {
        name: [one.measures(np.ones((films, 1), np.float32))] for name, one in prepared.items()
    }
    random = np.random.default_rng(seed)
    chunk = max(1, min(128, CHUNK_BYTES // (4 * films)))  # 128: rows of 512 bytes, and no pages of memory wasted
    with progress_bar() as progress:
        task = progress.add_task("resamples", total=resamples)
        for first in range(0, resamples, chunk):
            count = min(chunk, resamples - first)
            drawn = random.integers(0, films, (films, count)) * count + np.arange(count)
            weights = np.bincount(drawn.ravel(), minlength=films * count).reshape(films, count).astype(np.float32)
            for name, one in prepared.items():
                parts[name].append(one.measures(weights))
            progress.advance(task, count)
    return {name: np.concatenate(part) for name, part in parts.items()}


def difference(one: NDArray[np.float64], other: NDArray[np.float64] | None = None) -> Difference | None:
    """One minus other from their values [1 + resamples], or one by itself; None where a figure is missing."""
    drawn = one if other is None else one - other
    if np.isnan(drawn[0]):
        return None
    low, high = np.nanpercentile(drawn[1:], [2.5, 97.5]) if len(drawn) > 1 else (drawn[0], drawn[0])
    tail = 1 + min(int((drawn[1:] <= 0).sum()), int((drawn[1:] >= 0).sum()))
    return Difference(float(drawn[0]), float(low), float(high), min(1.0, 2 * tail / len(drawn)))


def all_differences(one: NDArray[np.float64], other: NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Each measure's `difference` as plain data, of values [1 + resamples, measures]."""
    found = {
        measure: difference(one[:, column], None if other is None else other[:, column])
        for column, measure in enumerate(MEASURES)
    }
    return {measure: row and row._asdict() for measure, row in found.items()}


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for how many there are (Holm 1979): at 0.05, one family in 20 wrongly calls something real."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate([(len(p) - rank) * p[place] for rank, place in enumerate(order)])
    result = np.empty(len(p))
    result[order] = np.minimum(1, adjusted)
    return result.tolist()


class _Prepared:
    """A run's part of the work that is the same in every resample: what is named, and each genre's ranking."""

    def __init__(self, scores: Scores) -> None:
        logits, labels, thresholds = scores
        self.genres = labels.shape[1]
        self.counts = [
            None if cut is None else _counts(logits > cut, labels) for cut in (thresholds, np.zeros(self.genres))
        ]
        self.rankings = [_Ranking(logits[:, g], labels[:, g]) for g in range(self.genres)]

    def measures(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """weights [films, resamples], how often each film is there -> [resamples, len(MEASURES)]."""
        named = [self._of_named(counts, weights) for counts in self.counts]
        ranked = np.array([ranking.measures(weights) for ranking in self.rankings])  # [genres, 2, resamples]
        known = ~np.isnan(ranked)
        means = np.where(known, ranked, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
        return np.concatenate([*named, means.T], axis=1)

    def _of_named(self, counts: NDArray[np.float32] | None, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        if counts is None:
            return np.full((weights.shape[1], len(NAMED)), np.nan)
        sums = (weights.T @ counts).astype(np.float64)  # [resamples, 3 genres + 1]
        films = weights.sum(axis=0, dtype=np.float64)
        found, wrong, missed = np.split(sums[:, :-1], 3, axis=1)  # [resamples, genres] each
        errors = (wrong + missed).sum(axis=1)
        micro = _f1(found.sum(axis=1), errors)
        accuracy = 1 - errors / (films * self.genres)
        return np.stack([micro, _f1(found, wrong + missed).mean(axis=1), sums[:, -1] / films, accuracy], axis=1)


def _counts(named: NDArray[np.bool_], labels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Per film and genre whether it was found, wrongly named, missed, and the film's F1: [films, 3 genres + 1]."""
    found, wrong, missed = named & labels, named & ~labels, ~named & labels
    of_film = _f1(found.sum(axis=1), wrong.sum(axis=1) + missed.sum(axis=1))
    return np.concatenate([found, wrong, missed, of_film[:, None]], axis=1).astype(np.float32)


def _f1(found: NDArray, errors: NDArray) -> NDArray[np.float64]:
    """2 TP / (2 TP + FP + FN); 0 where nothing is named and nothing is to be found, as scikit-learn counts it."""
    return np.asarray(2 * found / np.maximum(2 * found + errors, 1))


class _Ranking:
    """The films of one genre by falling logit. Only ranks that films of the genre hold matter to AP and AUC."""

    def __init__(self, logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> None:
        self.order = np.argsort(-logits, kind="stable")
        values, self.true = logits[self.order], np.flatnonzero(labels[self.order])
        # films of equal logits share a rank: they are taken in together
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        held = np.unique(np.searchsorted(starts, self.true, side="right") - 1)
        above, through = starts[held], np.append(starts[1:], len(values))[held]  # films above each rank, and with it
        self.first_true = np.searchsorted(self.true, above)
        # sums of the films from one of these places to the next, in one pass and without sorting the weights first
        edges = np.unique(np.concatenate([[0], above, through, [len(values)]]))
        self.pieces = csr_array(
            (np.ones(len(values), np.float32), self.order, edges), shape=(len(edges) - 1, len(values))
        )
        self.above, self.through = np.searchsorted(edges, above), np.searchsorted(edges, through)

    def measures(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """weights [films, resamples] -> average precision and AUC [2, resamples], NaN where there is none."""
        if not len(self.true):
            return np.full((2, weights.shape[1]), np.nan)
        total = np.zeros((self.pieces.shape[0] + 1, weights.shape[1]), np.float32)
        np.cumsum(self.pieces @ weights, axis=0, out=total[1:])
        true = np.add.reduceat(weights[self.order[self.true]], self.first_true, axis=0)  # [ranks, resamples]
        found = np.cumsum(true, axis=0)
        above, through = total[self.above], total[self.through]
        positive, all_films = found[-1].astype(np.float64), total[-1].astype(np.float64)
        negative = all_films - positive
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(through > 0, found / through, 0)
            average_precision = np.einsum("kr,kr->r", true, precision, dtype=np.float64) / positive
            # negatives above a film of the genre count whole, those of its rank half
            beaten_by = (above - (found - true)) + (through - above - true) / 2
            auc = 1 - np.einsum("kr,kr->r", true, beaten_by, dtype=np.float64) / (positive * negative)
        return np.stack([average_precision, auc])
