"""How good predictions are. Pure functions of logits and labels."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, roc_auc_score


def metrics(logits: NDArray[np.float32], labels: NDArray[np.bool_], genres: Sequence[str]) -> dict[str, Any]:
    """Everything about one split, at the study's threshold of 0.5 (logit > 0).

    logits, labels [films, genres]. Accuracy is the mean over genres, as in the study. A genre without a positive or
    without a negative film has no AUC, one without a positive film no average precision: null there, and left out of
    the means. F1 of a genre or film with nothing to find and nothing found is 0, as scikit-learn counts it.
    """
    named = figures_of_named(logits > 0, labels, genres)
    average_precision = [_or_none(average_precision_score, labels[:, g], logits[:, g]) for g in range(len(genres))]
    auc = [_or_none(roc_auc_score, labels[:, g], logits[:, g]) for g in range(len(genres))]
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


def figures_of_named(named: NDArray[np.bool_], labels: NDArray[np.bool_], genres: Sequence[str]) -> dict[str, Any]:
    """What depends on which genres are named, by whatever threshold: accuracy, F1 and the rows of the genres.

    named, labels [films, genres].
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
            for g, genre in enumerate(genres)
        },
    }


def _or_none(score: Any, labels: NDArray[np.bool_], logits: NDArray[np.float32]) -> float | None:
    if not labels.any() or (score is roc_auc_score and labels.all()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(score(labels, logits))


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is not None, None if there is nothing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
