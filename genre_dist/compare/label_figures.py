"""Figures of single labels: intervals of their F1, precision-recall curves, and what is named instead of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.compare.results import Model, on_films
from genre_dist.metrics.bootstrap import Scores, difference, over_seeds, resampled_labels
from genre_dist.metrics.choosing import log_odds, named_labels
from genre_dist.metrics.measures import most_often_instead, named_instead

RESAMPLES = 2000
"""Of the intervals of labels, at most: they are read one by one, and no p value rests on them."""
RECALLS = np.arange(1, 51) / 50
"""Where a precision-recall curve has a point."""


Bounds = Mapping[str, Mapping[str, float]]
"""Label -> `low` and `high` of its F1."""


def label_intervals(models: Sequence[Model], ids: NDArray[np.int64], resamples: int) -> list[Bounds]:
    """For each model the `low` and `high` of each label's F1 on some samples, over samples and seeds.

    At the fitted thresholds, at 0.5 without them, or of the likeliest label.
    """
    scores = {
        f"{number} {seed}": on_films(result, ids)
        for number, model in enumerate(models)
        for seed, result in enumerate(model.results)
    }
    drawn = resampled_labels(scores, min(resamples, RESAMPLES))
    intervals: list[Bounds] = []
    for number, model in enumerate(models):
        values = over_seeds([drawn[f"{number} {seed}"] for seed in range(len(model.results))], model.name)
        values = values.clip(0, 1)  # scaled deviations of seeds may lead out of it
        known = [difference(values[:, label]) for label in range(values.shape[1])]
        intervals.append(
            {
                name: {"low": row.low, "high": row.high}
                for name, row in zip(model.results[0].genres, known, strict=True)
                if row is not None
            }
        )
    return intervals


def precision_recall(one: Model, other: Model) -> dict[str, Any]:
    """The precision-recall curves of two models for each label, on the samples that both have, as plain data.

    A curve is a mean over the seeds: the precisions where the recalls `RECALLS` are first reached.
    """
    ids = np.intersect1d(one.ids, other.ids, assume_unique=True)
    labels = on_films(one.results[0], ids).labels
    curves = {side: _curves(model, ids) for side, model in (("one", one), ("other", other))}
    rows: dict[str, Any] = {}
    for label, name in enumerate(one.results[0].genres):
        if films := int(labels[:, label].sum()):
            rows[name] = {"films": films} | {side: drawn[label].round(4).tolist() for side, drawn in curves.items()}
    return {"one": one.name, "other": other.name, "labels": rows}


def _curves(model: Model, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Precisions at RECALLS, a mean over the seeds: [labels, recalls], 0 for a label without samples."""
    return np.mean([_precisions(on_films(result, ids)) for result in model.results], axis=0)


def _precisions(scores: Scores) -> NDArray[np.float64]:
    ranked = log_odds(scores.logits) if scores.choose == "one" else scores.logits
    curves = np.zeros((scores.labels.shape[1], len(RECALLS)))
    for label, curve in enumerate(curves):
        order = np.argsort(-ranked[:, label], kind="stable")
        values, hits = ranked[order, label], np.cumsum(scores.labels[order, label])
        if hits[-1]:
            ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # samples of equal logits come together
            reached = ends[np.searchsorted(hits[ends], np.ceil(RECALLS * hits[-1] - 1e-9))]
            curve[:] = hits[reached] / (reached + 1)
    return curves


def instead(model: Model, most: int) -> list[dict[str, Any]]:
    """What is named most often where a label is missed, on a model's own samples, all seeds together."""
    parts: list[Scores] = [on_films(result, model.ids) for result in model.results]
    counts = sum(named_instead(named_labels(one.logits, one.choose, one.thresholds), one.labels) for one in parts)
    return most_often_instead(np.asarray(counts), model.results[0].genres, most)


def with_intervals(table: Mapping[str, dict[str, Any]], intervals: Bounds, measure: str) -> dict[str, dict[str, Any]]:
    """The rows of labels with the interval of this F1; without where the F1 is not known."""
    return {
        label: row
        | {f"{measure}_{end}": None if row[measure] is None else intervals[label][end] for end in ("low", "high")}
        for label, row in table.items()
    }
