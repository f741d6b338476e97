"""The comparison as CSV files, a row for each model and measure, and for each model, label and measure."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genre_dist.atomic import atomic_file

MODELS, LABELS = "comparison.csv", "comparison-labels.csv"
SETS = {"own": "on_own_films", "shared": "on_shared_films"}
"""The sets of samples: all those that a model was evaluated on, and those that all models have."""
OF_LABEL = ("f1", "precision", "recall", "accuracy", "average_precision", "auc")
OF_LABEL_FITTED = ("f1_fitted", "precision_fitted", "recall_fitted")


def write_csv(folder: Path, comparison: dict[str, Any]) -> None:
    """Write both files. Measures that are not known are left out; cells without a value are empty."""
    for name, rows in ((MODELS, _model_rows(comparison)), (LABELS, _label_rows(comparison))):
        with atomic_file(folder / name, "w") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def _model_rows(comparison: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    yield "model", "kind", "seeds", "set", "samples", "measure", "value", "low", "high", "sd"
    for row in comparison["models"]:
        for name, key in SETS.items():
            samples = row["films"] if name == "own" else comparison["shared_films"]
            for measure, figure in row[key].items():
                if figure is not None:
                    about = row["name"], row["kind"], len(row["runs"]), name, samples, measure
                    yield *about, figure["value"], figure["low"], figure["high"], figure["sd"]


def _label_rows(comparison: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    yield "model", "kind", "seeds", "label", "samples", "measure", "value", "low", "high"
    for row in comparison["models"]:
        for label, figures in row["per_genre"].items():
            for measure in (*OF_LABEL, *OF_LABEL_FITTED):
                if figures[measure] is not None:
                    about = row["name"], row["kind"], len(row["runs"]), label, figures["films"], measure
                    yield *about, figures[measure], figures.get(f"{measure}_low"), figures.get(f"{measure}_high")
