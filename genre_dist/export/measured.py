"""What was measured of a run's model: figures with intervals, computed from the predictions in the run's folder."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.config.run import RECORD
from genre_dist.metrics.bootstrap import MEASURES, Difference, Scores, difference, resampled
from genre_dist.metrics.calibration import calibration
from genre_dist.metrics.choosing import named_labels
from genre_dist.metrics.evaluation_files import (
    Metrics,
    declared_of,
    metrics_file,
    predictions_file,
    read_evaluation,
)
from genre_dist.metrics.measures import figures_of_named, metrics
from genre_dist.metrics.thresholds import load_thresholds
from genre_dist.training.metrics_log import read_rows
from genre_dist.training.model_files import ModelMetadata

RESAMPLES = 1_000
"""The ends of an interval vary by about a tenth of its width with the draw."""


class LabelRow(NamedTuple):
    """A label's figures on a split, by what is predicted of it."""

    name: str
    samples: int
    f1: float
    precision: float
    recall: float
    average_precision: float | None


class Measured(NamedTuple):
    """The figures of a split."""

    split: str
    samples: int
    left_out: int
    """Samples that lack what the model needs."""
    measures: dict[str, Difference | None]
    """By the names of `metrics.bootstrap.MEASURES`."""
    labels: list[LabelRow]
    """At fitted thresholds if there are some, else at 0.5; or as the likeliest."""
    calibration_error: float
    by_fields: dict[str, Any]
    """Samples by the fields that they have -> number and micro F1; empty if all have the same."""
    of_other_shards: bool
    """Whether the run's own evaluation had another number of samples."""


class Record(NamedTuple):
    """What metrics.jsonl holds on the steps up to that of a model; empty without one."""

    last: dict[str, Any]
    """The last row of training."""
    evaluated: dict[tuple[str, int], dict[str, Any]]
    """Rows of evaluations by split and step, later ones too."""
    end: str | None
    """Why the run ended early."""


def read_record(run: Path, step: int) -> Record:
    """The record of a run for its model after a step. Raises ValueError if it is damaged."""
    last: dict[str, Any] = {}
    evaluated, end = dict[tuple[str, int], dict[str, Any]](), None
    for row in read_rows(run / RECORD):
        kind = row["kind"]
        if kind == "train" and row["step"] <= step:
            last = row
        elif kind in ("val", "test"):
            evaluated[kind, row["step"]] = row
        elif kind == "end" and row["step"] == step:
            end = str(row.get("reason"))
    return Record(last, evaluated, end)


def measure(run: Path, split: str, metadata: ModelMetadata, record: Record) -> Measured | None:
    """The figures of a run's finished model; None if the split's files are not there, or of other weights.

    They are computed from the predictions with the thresholds as they are now. Raises ValueError for damaged files, and
    for those of other labels.
    """
    if not (metrics_file(run, split).is_file() and predictions_file(run, split).is_file()):
        return None
    (_, logits, labels, _), written = read_evaluation(run, split)
    names, choose = [genre.name for genre in metadata.genres], metadata.declared.labels.choose
    if list(written["per_genre"]) != names or declared_of(written).labels.choose != choose:
        raise ValueError(f"{metrics_file(run, split)}: of other labels than {run}'s model; evaluate the run again")
    steps = [step for (kind, step), row in record.evaluated.items() if kind == split and _is_of(row, written)]
    if steps and metadata.step not in steps:
        return None
    own = record.evaluated.get((split, metadata.step))
    thresholds = load_thresholds(run, names) if choose == "many" else None
    drawn = resampled({"": Scores(logits, labels, thresholds, choose)}, RESAMPLES)[""]
    return Measured(
        split,
        len(labels),
        written.get("left_out", 0),
        {name: difference(drawn[:, column]) for column, name in enumerate(MEASURES)},
        _label_rows(names, logits, labels, metadata, thresholds),
        calibration(logits, labels, choose)["expected_calibration_error"],
        dict(written.get("by_fields", {})),
        own is not None and _samples(own) != len(labels),
    )


def _samples(row: dict[str, Any]) -> Any:
    return row.get("films", row.get("samples"))


def _is_of(row: dict[str, Any], written: Metrics) -> bool:
    """Whether a row of the record has the figures of metrics-SPLIT.json."""
    return _samples(row) == written["films"] and row.get("micro_f1") == written["micro_f1"]


def _label_rows(
    names: list[str],
    logits: NDArray[np.float32],
    labels: NDArray[np.bool_],
    metadata: ModelMetadata,
    thresholds: NDArray[np.float64] | None,
) -> list[LabelRow]:
    choose = metadata.declared.labels.choose
    ranked = metrics(logits, labels, names, choose)["per_genre"]
    rows = figures_of_named(named_labels(logits, choose, thresholds), labels, names)["per_genre"]
    return [
        LabelRow(name, row["films"], row["f1"], row["precision"], row["recall"], ranked[name]["average_precision"])
        for name, row in rows.items()
    ]
