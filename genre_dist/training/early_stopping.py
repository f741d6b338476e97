"""Early stopping, decided from the record's val rows alone, so that a resumed run decides as one never stopped."""

from collections.abc import Iterable
from typing import Any

from genre_dist.config import TrainConfig

Row = dict[str, Any]


def why_stop(rows: Iterable[Row], train: TrainConfig) -> str | None:
    """Why a run with these rows should end, or None."""
    metric, patience = train.stop_metric, train.stop_patience
    if metric is None:
        return None
    rows = [row for row in rows if row["kind"] == "val" and isinstance(row.get(metric), int | float)]
    sign = -1 if metric == "loss" else 1
    best = None
    for row in sorted(rows, key=lambda row: row["step"]):
        if best is None or sign * (row[metric] - best[metric]) > train.stop_min_delta:
            best = row
    if best is None:
        return None
    since = sum(row["step"] > best["step"] for row in rows)
    if since < patience:
        return None
    return (
        f"early stopping: val {metric} has not improved in {since} evaluations; it was best after step {best['step']}, "
        f"{best[metric]:.4f}"
    )
