"""Runs side by side, and whether their differences are more than chance."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from genre_dist.atomic import atomic_file

RESAMPLES = 2000
SHOWN = ("loss", "accuracy", "micro_f1", "macro_f1", "sample_f1", "mean_average_precision", "auc")


class Difference(NamedTuple):
    """How much better one run is than another, over resamples of the films."""

    value: float
    low: float
    high: float
    """95 % interval, from the 2.5th to the 97.5th percentile."""
    p: float
    """Two-sided: twice the share of resamples on the other side of zero."""


def compare(runs: Sequence[Path], split: str, out: Path) -> None:
    """Print runs side by side, each difference in micro F1 to the first run with its interval; write comparison.json.

    Raises ValueError if a run was not evaluated on the split, or on other films than the first.
    """
    told = {str(run): _read(run, split) for run in runs}
    first = next(iter(told))
    differences = {}
    for name, (_, hits) in told.items():
        if name != first:
            _check_same_films(first, told[first][1], name, hits)
            differences[name] = paired_bootstrap(hits, told[first][1])
    _print(split, {name: metrics for name, (metrics, _) in told.items()}, first, differences)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / "comparison.json", "w") as file:
        json.dump(
            {
                "split": split,
                "runs": {name: metrics for name, (metrics, _) in told.items()},
                "micro_f1_difference_to": first,
                "micro_f1_difference": {name: difference._asdict() for name, difference in differences.items()},
            },
            file,
            indent=1,
        )


class Hits(NamedTuple):
    """Per film: its id, and how many of its genres were found, wrongly named and missed at threshold 0.5."""

    ids: NDArray[np.int64]  # [films]
    counts: NDArray[np.float64]  # [films, 3]: true positives, false positives, false negatives


def paired_bootstrap(one: Hits, other: Hits, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """The difference in micro F1, one minus other, over films drawn with replacement, the same films for both.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
    """
    random, films = np.random.default_rng(seed), len(one.ids)
    drawn = np.empty(resamples)
    for number in range(resamples):
        films_drawn = random.integers(0, films, films)
        drawn[number] = micro_f1(one.counts[films_drawn]) - micro_f1(other.counts[films_drawn])
    low, high = np.percentile(drawn, [2.5, 97.5])
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return Difference(micro_f1(one.counts) - micro_f1(other.counts), float(low), float(high), min(1.0, 2 * float(tail)))


def micro_f1(counts: NDArray[np.float64]) -> float:
    """2 TP / (2 TP + FP + FN) over all films and genres; 0 where nothing is named and nothing is to be found."""
    found, wrong, missed = counts.sum(axis=0)
    total = 2 * found + wrong + missed
    return float(2 * found / total) if total else 0.0


def _read(run: Path, split: str) -> tuple[dict[str, Any], Hits]:
    metrics, predictions = run / f"metrics-{split}.json", run / f"predictions-{split}.parquet"
    if not (metrics.is_file() and predictions.is_file()):
        raise ValueError(f"{run}: not evaluated on {split} yet; run `genre-dist evaluate {run} --split {split}`")
    table = pq.read_table(predictions).sort_by("tmdb_id")
    predicted = np.stack(table["logits"].to_numpy()) > 0
    labels = np.stack(table["labels"].to_numpy())
    counts = [predicted & labels, predicted & ~labels, ~predicted & labels]
    hits = Hits(table["tmdb_id"].to_numpy(), np.stack([each.sum(axis=1) for each in counts], axis=1).astype(float))
    return json.loads(metrics.read_text()), hits


def _check_same_films(first: str, wanted: Hits, name: str, found: Hits) -> None:
    if not np.array_equal(wanted.ids, found.ids):
        raise ValueError(
            f"{name} was evaluated on {len(found.ids):,} films and {first} on {len(wanted.ids):,}, not the same "
            "ones: only runs on the same films can be compared"
        )


def _print(split: str, metrics: dict[str, dict[str, Any]], first: str, differences: dict[str, Difference]) -> None:
    console = Console()
    table = Table(f"{split} split", *(Path(name).name for name in metrics))
    table.add_row("films", *(f"{told['films']:,}" for told in metrics.values()))
    for key in SHOWN:
        table.add_row(key, *(_number(told[key]) for told in metrics.values()))
    for genre in next(iter(metrics.values()))["per_genre"]:
        table.add_row(f"F1 {genre}", *(_number(told["per_genre"][genre]["f1"]) for told in metrics.values()))
    console.print(table)
    for name, difference in differences.items():
        sure = "more than chance" if difference.low > 0 or difference.high < 0 else "may be chance"
        console.print(
            f"micro F1 of {Path(name).name} minus {Path(first).name}: {difference.value:+.4f} "
            f"(95 % interval {difference.low:+.4f} to {difference.high:+.4f}, p {difference.p:.3f}): {sure}"
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
