"""Metrics of predictions: pure functions of logits and labels."""

import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.metrics.choosing import likeliest, log_odds, named_labels
from genre_dist.schema import Choose

TOP = (3, 5)
"""With exactly one label a sample: how many of the likeliest labels are looked at, beside the first."""


def _sklearn() -> ModuleType:
    """scikit-learn's metrics, imported when they are first needed: it takes 1.3 s, and one rank of a run needs them."""
    import sklearn.metrics

    return sklearn.metrics


def metrics(
    logits: NDArray[np.float32], labels: NDArray[np.bool_], names: Sequence[str], choose: Choose = "many"
) -> dict[str, Any]:
    """All metrics of a split, at the study's threshold of 0.5 (logit > 0); see `metrics_of_one` for exactly one label.

    logits, labels [samples, labels]. Accuracy is the mean over labels, as in the study. AUC is None for a label without
    positives or without negatives, average precision for one without positives; the means leave it out. F1 of a label
    or sample without true and without predicted positives is 0, as in scikit-learn.
    """
    if choose == "one":
        return metrics_of_one(logits, labels, names)
    named = figures_of_named(logits > 0, labels, names)
    ranked = _ranked(logits, labels, named)
    return {
        "films": len(labels),
        "threshold": 0.5,
        **{name: value for name, value in named.items() if name != "per_genre"},
        **ranked,
        "per_genre": named["per_genre"],
    }


def by_fields(
    has: Mapping[str, NDArray[np.bool_]],
    logits: NDArray[np.float32],
    labels: NDArray[np.bool_],
    thresholds: NDArray[np.float64] | None,
    choose: Choose = "many",
) -> dict[str, dict[str, Any]]:
    """The metrics of samples by the fields that they have; `has` of each field is [samples].

    The first row is of the samples with every field, the others have `only` before their fields. Empty if all samples
    have the same fields. F1 at 0.5, and with thresholds [labels] also at these.
    """
    bits = sum((own.astype(int) << number for number, own in enumerate(has.values())), np.zeros(len(labels), int))
    rows: dict[str, dict[str, Any]] = {}
    for pattern in sorted(set(bits.tolist()), reverse=True):
        chosen, names = bits == pattern, [name for number, name in enumerate(has) if pattern >> number & 1]
        some, truth = logits[chosen], labels[chosen]
        scores = some if choose == "many" else log_odds(some)
        precisions = [
            _or_none(_sklearn().average_precision_score, truth[:, g], scores[:, g]) for g in range(labels.shape[1])
        ]
        row: dict[str, Any] = {"films": int(chosen.sum()), **_f1(named_labels(some, choose), truth)}
        row["mean_average_precision"] = mean_of_known(precisions)
        if thresholds is not None:
            row |= {f"{name}_fitted": value for name, value in _f1(some > thresholds, truth).items()}
        rows[("" if len(names) == len(has) else "only ") + " and ".join(names)] = row
    return rows if len(rows) > 1 else {}


def _f1(named: NDArray[np.bool_], labels: NDArray[np.bool_]) -> dict[str, float]:
    kinds = ("micro", "macro")
    return {f"{kind}_f1": float(_sklearn().f1_score(labels, named, average=kind, zero_division=0)) for kind in kinds}


def metrics_of_one(logits: NDArray[np.float32], labels: NDArray[np.bool_], names: Sequence[str]) -> dict[str, Any]:
    """All metrics of a split whose samples have exactly one label, the likeliest being predicted.

    logits, labels [samples, labels]. Accuracy is the share of samples whose label is predicted, `top_3` that of samples
    whose label is among the three likeliest (left out where there are no more labels). Average precision and AUC are of
    each label against the rest, by the softmax's probabilities. `confusion` [labels, labels] counts samples, rows being
    true labels. A sample that could not be read has no label: nothing predicted for it is right.
    """
    predicted = likeliest(logits)
    named = figures_of_named(predicted, labels, names)
    order = np.argsort(-logits, axis=1, kind="stable")
    true = np.take_along_axis(labels, order, axis=1)  # [samples, labels], the likeliest first
    top = {f"top_{k}": float(true[:, :k].any(axis=1).mean()) for k in TOP if k < len(names)}
    ranked = _ranked(log_odds(logits), labels, named)
    return {
        "films": len(labels),
        "accuracy": float((predicted & labels).any(axis=1).mean()),
        **top,
        **{name: named[name] for name in ("micro_f1", "macro_f1", "sample_f1")},
        **ranked,
        "per_genre": named["per_genre"],
        "confusion": confusion(predicted, labels).tolist(),
    }


def confusion(named: NDArray[np.bool_], labels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many samples of each label (rows) are predicted as which: [labels, labels].

    named, labels [samples, labels], one True each; a sample without a label is left out.
    """
    known, count = labels.any(axis=1), labels.shape[1]
    pairs = labels[known].argmax(axis=1) * count + named[known].argmax(axis=1)
    return np.bincount(pairs, minlength=count**2).reshape(count, count)


def named_instead(named: NDArray[np.bool_], labels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many samples that miss a label (rows) name which of those that they do not have: [labels, labels].

    named, labels [samples, labels], any number of True each. The diagonal counts the samples that miss the label.
    """
    missed = (labels & ~named).astype(np.int64)
    counts = missed.T @ (named & ~labels)
    np.fill_diagonal(counts, missed.sum(axis=0))
    return counts


def most_often_instead(counts: NDArray[np.int64], names: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The largest counts of `named_instead`, with their share of the samples that miss the label."""
    return [
        {
            "missed": names[missed],
            "named": names[named],
            "samples": samples,
            "share": samples / int(counts[missed, missed]),
        }
        for missed, named, samples in _largest(counts, most)
    ]


def _largest(counts: NDArray[np.int64], most: int) -> list[tuple[int, int, int]]:
    """The rows, columns and values of the largest counts [labels, labels] off the diagonal; zeros are left out."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(row), int(column), int(wrong[row, column])) for row, column in places if wrong[row, column]]


def most_confused(counts: NDArray[np.int64], names: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The labels taken for others most often, of a confusion matrix [labels, labels], with their share of the true."""
    return [
        {
            "true": names[true],
            "predicted": names[taken],
            "samples": samples,
            "share": samples / int(counts[true].sum()),
        }
        for true, taken, samples in _largest(counts, most)
    ]


def _ranked(scores: NDArray[np.floating], labels: NDArray[np.bool_], named: dict[str, Any]) -> dict[str, float | None]:
    """The mean average precision and AUC of scores [samples, labels]; each label's go into its row of `named`."""
    average_precision = [
        _or_none(_sklearn().average_precision_score, labels[:, g], scores[:, g]) for g in range(labels.shape[1])
    ]
    auc = [_or_none(_sklearn().roc_auc_score, labels[:, g], scores[:, g]) for g in range(labels.shape[1])]
    for g, row in enumerate(named["per_genre"].values()):
        row |= {"average_precision": average_precision[g], "auc": auc[g]}
    return {"mean_average_precision": mean_of_known(average_precision), "auc": mean_of_known(auc)}


def figures_of_named(named: NDArray[np.bool_], labels: NDArray[np.bool_], names: Sequence[str]) -> dict[str, Any]:
    """The metrics that depend on the predicted labels `named`, by any threshold: accuracy, F1 and a row per label.

    named, labels [samples, labels].
    """
    precision, recall, f1, films = _sklearn().precision_recall_fscore_support(
        labels, named, average=None, zero_division=0
    )
    return {
        "accuracy": float((named == labels).mean()),
        "micro_f1": float(_sklearn().f1_score(labels, named, average="micro", zero_division=0)),
        "macro_f1": float(_sklearn().f1_score(labels, named, average="macro", zero_division=0)),
        "sample_f1": float(_sklearn().f1_score(labels, named, average="samples", zero_division=0)),
        "per_genre": {
            genre: {
                "films": int(films[g]),
                "f1": float(f1[g]),
                "precision": float(precision[g]),
                "recall": float(recall[g]),
                "accuracy": float((named[:, g] == labels[:, g]).mean()),
            }
            for g, genre in enumerate(names)
        },
    }


def _or_none(score: Any, labels: NDArray[np.bool_], logits: NDArray[np.floating]) -> float | None:
    if not labels.any() or (score is _sklearn().roc_auc_score and labels.all()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return min(1.0, float(score(labels, logits)))  # a sum of rounded shares may be a digit above 1


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
