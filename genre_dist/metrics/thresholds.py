"""From which logit on a genre is named: fitted on the val split, kept with the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.sealed import read_sealed, write_sealed

FILE = "thresholds.json"
COMMON_FILMS = 50  # between 20 and 200 micro F1 on real films moves by 0.4 points


@dataclass(frozen=True)
class _Told:
    """What is used of thresholds.json."""

    logits: dict[str, Annotated[float, Ge(-1e30), Le(1e30)]]


def fit_thresholds(logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Per genre a threshold for a good F1 on films of the same kind: logits, labels [films, genres] -> [genres].

    A genre is named where its logit is above the threshold. A genre of n films gets the threshold that is best for it
    on these films, drawn towards the one that is best for all genres together (micro F1), as if that came from
    COMMON_FILMS more films: t = common + n / (n + COMMON_FILMS) * (own - common). What a genre of a handful of films
    alone suggests is chance, and cost combined models up to 9 points of micro F1 on other films (RESULTS.md).
    """
    common = _fit_one(logits.reshape(-1), labels.reshape(-1))
    own = np.array([_fit_one(logits[:, g], labels[:, g]) for g in range(logits.shape[1])])
    films = labels.sum(axis=0)
    return common + films / (films + COMMON_FILMS) * (own - common)


def _fit_one(logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    """The threshold with the best F1: halfway between two films' logits; of equally good ones the nearest to 0 (a
    probability of one half). 0 if no film has the genre. logits, labels [N]."""
    if not labels.any():
        return 0.0
    order = np.argsort(-logits, kind="stable")
    values, found = logits[order].astype(np.float64), np.cumsum(labels[order])
    last = np.append(values[:-1] > values[1:], True)  # films of equal logits are named together
    named = np.flatnonzero(last) + 1
    f1 = 2 * found[last] / (named + labels.sum())
    edges = values[last]
    below = np.append((edges[:-1] + edges[1:]) / 2, np.nextafter(edges[-1], -np.inf))
    upper = np.append(edges[:-1], edges[-1])
    lower = np.append(edges[1:], -np.inf)
    # where 0 separates the same films, it is as good as the middle between them
    cuts = np.where((lower <= 0) & (upper > 0), 0.0, below)
    best = np.flatnonzero(f1 == f1.max())
    return float(cuts[best][np.argmin(np.abs(cuts[best]))])


def save_thresholds(run: Path, genres: Sequence[str], thresholds: NDArray[np.float64], films: int) -> None:
    """Write thresholds.json into a run's folder: the logit of each genre, and on how many films they were fitted."""
    told = {
        "rule": "a genre is named where its logit is above the threshold; fitted for the best F1, "
        "rare genres' drawn towards the one best for all",
        "split": "val",
        "films": films,
        "logits": {genre: float(value) for genre, value in zip(genres, thresholds, strict=True)},
    }
    write_sealed(run / FILE, told)


def load_thresholds(run: Path, genres: Sequence[str]) -> NDArray[np.float64] | None:
    """A run's thresholds [genres], or None if it was never evaluated on val.

    Raises ValueError if the file is damaged or of other genres.
    """
    path, remedy = run / FILE, f"`genre-dist evaluate {run} --split val` makes it again"
    if not path.is_file():
        return None
    logits = read_sealed(_Told, path, remedy).logits
    if missing := [genre for genre in genres if genre not in logits]:
        raise ValueError(f"{path}: no threshold of {printable(missing[0])}; {remedy}")
    return np.array([logits[genre] for genre in genres])
