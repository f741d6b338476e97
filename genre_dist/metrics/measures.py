"""Metrics of predictions: pure functions of logits and labels."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, roc_auc_score


def metrics(logits: NDArray[np.float32], labels: NDArray[np.bool_], names: Sequence[str]) -> dict[str, Any]:
    """All metrics of a split, at the study's threshold of 0.5 (logit > 0).

    logits, labels [samples, labels]. Accuracy is the mean over labels, as in the study. AUC is None for a label without
    positives or without negatives, average precision for one without positives; the means leave it out. F1 of a label
    or sample without true and without predicted positives is 0, as in scikit-learn.
    """
    named = figures_of_named(logits > 0, labels, names)
    average_precision = [_or_none(average_precision_score, labels[:, g], logits[:, g]) for g in range(len(names))]
    auc = [_or_none(roc_auc_score, labels[:, g], logits[:, g]) for g in range(len(names))]
    for g, row in enumerate(named["per_genre"].values()):
        row |= {"average_precision": average_precision[g], "auc": auc[g]}
    return {
        "films": len(labels),
        "threshold": 0.5,
        **{name: value for name, value in named.items() if name != "per_genre"},
        "mean_average_precision": mean_of_known(average_precision),
        "auc": mean_of_known(auc),
        "per_genre": named["per_genre"],
    }


def by_fields(
    has: Mapping[str, NDArray[np.bool_]],
    logits: NDArray[np.float32],
    labels: NDArray[np.bool_],
    thresholds: NDArray[np.float64] | None,
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
        precisions = [_or_none(average_precision_score, truth[:, g], some[:, g]) for g in range(labels.shape[1])]
        row: dict[str, Any] = {"films": int(chosen.sum()), **_f1(some > 0, truth)}
        row["mean_average_precision"] = mean_of_known(precisions)
        if thresholds is not None:
            row |= {f"{name}_fitted": value for name, value in _f1(some > thresholds, truth).items()}
        rows[("" if len(names) == len(has) else "only ") + " and ".join(names)] = row
    return rows if len(rows) > 1 else {}


def _f1(named: NDArray[np.bool_], labels: NDArray[np.bool_]) -> dict[str, float]:
    kinds = ("micro", "macro")
    return {f"{kind}_f1": float(f1_score(labels, named, average=kind, zero_division=0)) for kind in kinds}


def figures_of_named(named: NDArray[np.bool_], labels: NDArray[np.bool_], names: Sequence[str]) -> dict[str, Any]:
    """The metrics that depend on the predicted labels `named`, by any threshold: accuracy, F1 and a row per label.

    named, labels [samples, labels].
    """
    precision, recall, f1, films = precision_recall_fscore_support(labels, named, average=None, zero_division=0)
    return {
        "accuracy": float((named == labels).mean()),
        "micro_f1": float(f1_score(labels, named, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(labels, named, average="macro", zero_division=0)),
        "sample_f1": float(f1_score(labels, named, average="samples", zero_division=0)),
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


def _or_none(score: Any, labels: NDArray[np.bool_], logits: NDArray[np.float32]) -> float | None:
    if not labels.any() or (score is roc_auc_score and labels.all()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(score(labels, logits))


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
