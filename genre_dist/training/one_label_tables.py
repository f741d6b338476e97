"""An evaluation of samples with exactly one label each, as tables for the terminal."""

from typing import TYPE_CHECKING, Any

import numpy as np

from genre_dist.metrics.measures import TOP, most_confused
from genre_dist.printable import printable
from genre_dist.schema import Schema

if TYPE_CHECKING:
    from rich.table import Table

WIDEST_MATRIX = 10
"""The most labels whose confusion matrix is shown whole; of more, the pairs that are confused most often."""
MEASURES = ("accuracy", *(f"top_{k}" for k in TOP), "macro_f1", "mean_average_precision", "auc", "loss")
COLUMNS = {"F1": "f1", "precision": "precision", "recall": "recall", "AP": "average_precision", "AUC": "auc"}


def one_label_tables(figures: dict[str, Any], declared: Schema) -> list["Table"]:
    """Tables of the whole split, of each label, and of which labels are taken for which."""
    from rich.table import Table  # only printing needs rich

    whole = Table("", "the likeliest is predicted")
    for name in MEASURES:
        if name in figures:
            whole.add_row(name, figure(figures[name]))
    each = Table(declared.label, declared.samples, *COLUMNS)
    for label, row in figures["per_genre"].items():
        each.add_row(printable(label), f"{row['films']:,}", *(figure(row[key]) for key in COLUMNS.values()))
    names, counts = list(map(printable, figures["per_genre"])), np.array(figures["confusion"])
    if len(names) <= WIDEST_MATRIX:
        confused = Table(f"{declared.samples}: true {declared.label}, by predicted", *names)
        for name, row in zip(names, counts.tolist(), strict=True):
            confused.add_row(name, *(f"{count:,}" for count in row))
    else:
        confused = Table(f"true {declared.label}", "predicted", declared.samples, "share", title="most often confused")
        for pair in most_confused(counts, names, WIDEST_MATRIX):
            confused.add_row(pair["true"], pair["predicted"], f"{pair['samples']:,}", f"{pair['share']:.0%}")
    return [whole, each, confused]


def figure(value: float | None) -> str:
    """A figure between 0 and 1, or a loss."""
    return "-" if value is None else f"{value:.4f}"
