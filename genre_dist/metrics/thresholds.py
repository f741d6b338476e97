"""The logit above which a label is predicted: fitted on the val split, kept with the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.schema import TMDB, Schema, plural, with_article
from genre_dist.sealed import read_sealed, write_sealed

FILE = "thresholds.json"
COMMON_FILMS = 50  # between 20 and 200 micro F1 on real films moves by 0.4 points


@dataclass(frozen=True)
class _Thresholds:
    """The keys that are read of thresholds.json."""

    logits: dict[str, Annotated[float, Ge(-1e30), Le(1e30)]]


def fit_thresholds(logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A threshold per label for a good F1 on similar samples: logits, labels [samples, labels] -> [labels].

    A label is predicted where its logit is above the threshold. A label of n samples gets the threshold that is best
    for it on these samples, drawn towards the one that is best for all labels together (micro F1), as if that came from
    COMMON_FILMS more samples: t = common + n / (n + COMMON_FILMS) * (own - common). Without this, thresholds of rare
    labels overfit, which cost combined models up to 9 points of micro F1 on other films (RESULTS.md).
    """
    common = _fit_one(logits.reshape(-1), labels.reshape(-1))
    own = np.array([_fit_one(logits[:, g], labels[:, g]) for g in range(logits.shape[1])])
    samples = labels.sum(axis=0)
    return common + samples / (samples + COMMON_FILMS) * (own - common)


def _fit_one(logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    """The threshold with the best F1: halfway between two samples' logits; of equally good ones the nearest to 0 (a
    probability of one half). 0 if no sample has the label. logits, labels [N]."""
    if not labels.any():
        return 0.0
    order = np.argsort(-logits, kind="stable")
    values, true_positives = logits[order].astype(np.float64), np.cumsum(labels[order])
    last = np.append(values[:-1] > values[1:], True)  # samples of equal logits are predicted together
    named = np.flatnonzero(last) + 1
    f1 = 2 * true_positives[last] / (named + labels.sum())
    edges = values[last]
    below = np.append((edges[:-1] + edges[1:]) / 2, np.nextafter(edges[-1], -np.inf))
    upper = np.append(edges[:-1], edges[-1])
    lower = np.append(edges[1:], -np.inf)
    # where 0 separates the same samples, it is as good as the middle between them
    cuts = np.where((lower <= 0) & (upper > 0), 0.0, below)
    best = np.flatnonzero(f1 == f1.max())
    return float(cuts[best][np.argmin(np.abs(cuts[best]))])


def save_thresholds(
    run: Path, names: Sequence[str], thresholds: NDArray[np.float64], samples: int, declared: Schema = TMDB
) -> None:
    """Write thresholds.json into a run's folder: each label's threshold, and the number of samples they fit."""
    content = {
        "rule": f"{with_article(declared.label)} is named where its logit is above the threshold; fitted for the best "
        f"F1, rare {plural(declared.label)}' drawn towards the one best for all",
        "split": "val",
        "films" if declared == TMDB else "samples": samples,
        "logits": {name: float(value) for name, value in zip(names, thresholds, strict=True)},
    }
    write_sealed(run / FILE, content)


def load_thresholds(run: Path, names: Sequence[str]) -> NDArray[np.float64] | None:
    """A run's thresholds [labels], or None if it was never evaluated on val.

    Raises ValueError if the file is damaged or of other labels.
    """
    path, remedy = run / FILE, f"`genre-dist evaluate {run} --split val` makes it again"
    if not path.is_file():
        return None
    logits = read_sealed(_Thresholds, path, remedy).logits
    if missing := [name for name in names if name not in logits]:
        raise ValueError(f"{path}: no threshold of {printable(missing[0])}; {remedy}")
    return np.array([logits[name] for name in names])
