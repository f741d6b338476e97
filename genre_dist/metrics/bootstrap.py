"""Confidence intervals by the bootstrap: every measure over many resamples of the samples, the same for all runs.

Efron and Tibshirani 1993, An Introduction to the Bootstrap: percentile intervals, paired where runs are compared.
Several seeds of one model are drawn too, `over_seeds`.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from genre_dist.metrics.choosing import likeliest, log_odds, named_labels
from genre_dist.progress import progress_bar
from genre_dist.schema import Choose

RESAMPLES = 10_000  # with fewer, no difference between a dozen models could stay significant after Holm's correction
CHUNK_BYTES = 32 << 20  # of one array of weights; about six of them are in use at a time

NAMED = ("micro_f1", "macro_f1", "sample_f1", "accuracy")
MEASURES = (*(f"{name}_fitted" for name in NAMED), *NAMED, "mean_average_precision", "auc")
"""`_fitted` at the thresholds fitted on val, otherwise at 0.5; the last two need no threshold. Where a sample has
exactly one label, the likeliest is predicted, accuracy is the share of samples, and nothing is fitted."""


class Scores(NamedTuple):
    """A run's logits for some samples, with the labels and the fitted thresholds."""

    logits: NDArray[np.float32]  # [samples, labels]
    labels: NDArray[np.bool_]  # [samples, labels]
    thresholds: NDArray[np.float64] | None  # [labels]; None if none were fitted
    choose: Choose = "many"


class Difference(NamedTuple):
    """A measure, or the difference of two, with its interval and p value over resamples."""

    value: float
    low: float
    high: float
    """95 % interval, from the 2.5th to the 97.5th percentile."""
    p: float
    """Two-sided: twice the share of resamples on the other side of zero; the original samples count as one resample."""


def resampled(runs: Mapping[str, Scores], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Every measure of runs on the same samples: [1 + resamples, len(MEASURES)], first that of the original samples.

    A measure that a run lacks is NaN: those at fitted thresholds if none were fitted, and the last two if no label has
    samples with and without it.
    """
    return _over_resamples({name: _Prepared(scores).measures for name, scores in runs.items()}, runs, resamples, seed)


def resampled_labels(
    runs: Mapping[str, Scores], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """The F1 of each label of runs on the same samples: [1 + resamples, labels], as `resampled`.

    At the fitted thresholds, at 0.5 without them, or of the likeliest label.
    """
    return _over_resamples({name: _LabelF1(scores).measures for name, scores in runs.items()}, runs, resamples, seed)


Measured = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""From weights [samples, resamples], how often each sample is drawn, to values [resamples, ...]."""


def _over_resamples(
    measured: Mapping[str, Measured], runs: Mapping[str, Scores], resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """The values of runs on the original samples and on each resample: [1 + resamples, ...]."""
    samples = len(next(iter(runs.values())).labels)
    parts = {name: [measures(np.ones((samples, 1), np.float32))] for name, measures in measured.items()}
    random = np.random.default_rng(seed)
    chunk = max(1, min(128, CHUNK_BYTES // (4 * samples)))  # 128: rows of 512 bytes waste no memory pages
    with progress_bar() as progress:
        task = progress.add_task("resamples", total=resamples)
        for first in range(0, resamples, chunk):
            count = min(chunk, resamples - first)
            drawn = random.integers(0, samples, (samples, count)) * count + np.arange(count)
            weights = np.bincount(drawn.ravel(), minlength=samples * count).reshape(samples, count).astype(np.float32)
            for name, measures in measured.items():
                parts[name].append(measures(weights))
            progress.advance(task, count)
    return {name: np.concatenate(part) for name, part in parts.items()}


def over_seeds(seeds: Sequence[NDArray[np.float64]], name: str) -> NDArray[np.float64]:
    """A model's values over resamples of the samples and of its seeds: [1 + resamples, ...], from those of each seed.

    The first row is the mean over the seeds. In every resample as many seeds are drawn with replacement as there are
    (Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8). A mean over n drawn seeds spreads
    too little by the factor sqrt((n - 1) / n), the narrowness bias, so its deviation from the mean over all seeds is
    scaled by sqrt(n / (n - 1)) (Hesterberg 2015, What Teachers Should Know about the Bootstrap). A single
    seed stays as it is. The draws follow from the model's name: they are the same whichever other models there are,
    and those of two models are independent.
    """
    values = np.stack(seeds)  # [seeds, 1 + resamples, ...]
    count, rows = values.shape[:2]
    mean = values.mean(axis=0)
    if count == 1:
        return mean
    random = np.random.default_rng([1, *os.fsencode(name)])
    drawn = random.multinomial(count, np.full(count, 1 / count), size=rows) / count  # [1 + resamples, seeds]
    drawn[0] = 1 / count
    return np.asarray(mean + math.sqrt(count / (count - 1)) * (np.einsum("rs,sr...->r...", drawn, values) - mean))


def difference(one: NDArray[np.float64], other: NDArray[np.float64] | None = None) -> Difference | None:
    """One minus other from their values [1 + resamples], or one by itself; None if a value is missing."""
    drawn = one if other is None else one - other
    if np.isnan(drawn[0]):
        return None
    low, high = np.nanpercentile(drawn[1:], [2.5, 97.5]) if len(drawn) > 1 else (drawn[0], drawn[0])
    tail = 1 + min(int((drawn[1:] <= 0).sum()), int((drawn[1:] >= 0).sum()))
    return Difference(float(drawn[0]), float(low), float(high), min(1.0, 2 * tail / len(drawn)))


def all_differences(one: NDArray[np.float64], other: NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Each measure's `difference` as plain data, of values [1 + resamples, measures]."""
    rows = {
        measure: difference(one[:, column], None if other is None else other[:, column])
        for column, measure in enumerate(MEASURES)
    }
    return {measure: row and row._asdict() for measure, row in rows.items()}


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for multiple tests (Holm 1979): at 0.05, one family in 20 has a false positive."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate([(len(p) - rank) * p[index] for rank, index in enumerate(order)])
    result = np.empty(len(p))
    result[order] = np.minimum(1, adjusted)
    return result.tolist()


class _Prepared:
    """A run's work that is the same in every resample: the predicted labels' counts and each label's ranking."""

    def __init__(self, scores: Scores) -> None:
        logits, labels, thresholds, self.choose = scores
        self.labels = labels.shape[1]
        ranked: NDArray[np.floating] = logits
        if self.choose == "one":
            self.counts = [None, _counts(likeliest(logits), labels)]
            ranked = log_odds(logits)
        else:
            self.counts = [
                None if cut is None else _counts(logits > cut, labels) for cut in (thresholds, np.zeros(self.labels))
            ]
        self.rankings = [_Ranking(ranked[:, g], labels[:, g]) for g in range(self.labels)]

    def measures(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """weights [samples, resamples], how often each sample is drawn -> [resamples, len(MEASURES)]."""
        named = [self._of_named(counts, weights) for counts in self.counts]
        ranked = np.array([ranking.measures(weights) for ranking in self.rankings])  # [labels, 2, resamples]
        known = ~np.isnan(ranked)
        means = np.where(known, ranked, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
        return np.concatenate([*named, means.T], axis=1)

    def _of_named(self, counts: NDArray[np.float32] | None, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        if counts is None:
            return np.full((weights.shape[1], len(NAMED)), np.nan)
        sums = (weights.T @ counts).astype(np.float64)  # [resamples, 3 labels + 1]
        samples = weights.sum(axis=0, dtype=np.float64)
        tp, fp, fn = np.split(sums[:, :-1], 3, axis=1)  # [resamples, labels] each
        errors = (fp + fn).sum(axis=1)
        micro = _f1(tp.sum(axis=1), errors)
        right = tp.sum(axis=1) / samples
        accuracy = right if self.choose == "one" else 1 - errors / (samples * self.labels)
        return np.stack([micro, _f1(tp, fp + fn).mean(axis=1), sums[:, -1] / samples, accuracy], axis=1)


class _LabelF1:
    """A run's counts of each label, the same in every resample."""

    def __init__(self, scores: Scores) -> None:
        named = named_labels(scores.logits, scores.choose, scores.thresholds)
        self.counts = _counts(named, scores.labels)[:, :-1]

    def measures(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """weights [samples, resamples] -> the F1 of each label [resamples, labels]."""
        tp, fp, fn = np.split((weights.T @ self.counts).astype(np.float64), 3, axis=1)
        return _f1(tp, fp + fn)


def _counts(named: NDArray[np.bool_], labels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Per sample its true positives, false positives, false negatives and F1: [samples, 3 labels + 1]."""
    tp, fp, fn = named & labels, named & ~labels, ~named & labels
    of_sample = _f1(tp.sum(axis=1), fp.sum(axis=1) + fn.sum(axis=1))
    return np.concatenate([tp, fp, fn, of_sample[:, None]], axis=1).astype(np.float32)


def _f1(tp: NDArray, errors: NDArray) -> NDArray[np.float64]:
    """2 TP / (2 TP + FP + FN); 0 without true and without predicted positives, as in scikit-learn."""
    return np.asarray(2 * tp / np.maximum(2 * tp + errors, 1))


class _Ranking:
    """The samples by falling logit of one label. Only ranks of its positives matter to AP and AUC."""

    def __init__(self, logits: NDArray[np.floating], labels: NDArray[np.bool_]) -> None:
        self.order = np.argsort(-logits, kind="stable")
        values, self.true = logits[self.order], np.flatnonzero(labels[self.order])
        # samples of equal logits share a rank
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        held = np.unique(np.searchsorted(starts, self.true, side="right") - 1)
        above, through = starts[held], np.append(starts[1:], len(values))[held]  # samples above each rank, and with it
        self.first_true = np.searchsorted(self.true, above)
        # sums of weights between these edges, in one pass and without sorting the weights first
        edges = np.unique(np.concatenate([[0], above, through, [len(values)]]))
        self.segments = csr_array(
            (np.ones(len(values), np.float32), self.order, edges), shape=(len(edges) - 1, len(values))
        )
        self.above, self.through = np.searchsorted(edges, above), np.searchsorted(edges, through)

    def measures(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """weights [samples, resamples] -> average precision and AUC [2, resamples], NaN where undefined."""
        if not len(self.true):
            return np.full((2, weights.shape[1]), np.nan)
        total = np.zeros((self.segments.shape[0] + 1, weights.shape[1]), np.float32)
        np.cumsum(self.segments @ weights, axis=0, out=total[1:])
        true = np.add.reduceat(weights[self.order[self.true]], self.first_true, axis=0)  # [ranks, resamples]
        tp = np.cumsum(true, axis=0)
        above, through = total[self.above], total[self.through]
        positive, drawn = tp[-1].astype(np.float64), total[-1].astype(np.float64)
        negative = drawn - positive
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(through > 0, tp / through, 0)
            average_precision = np.einsum("kr,kr->r", true, precision, dtype=np.float64) / positive
            # negatives above a positive count whole, those of its rank half
            beaten_by = (above - (tp - true)) + (through - above - true) / 2
            auc = 1 - np.einsum("kr,kr->r", true, beaten_by, dtype=np.float64) / (positive * negative)
        return np.stack([average_precision, auc])
