"""The files of an evaluation, in a run's folder: predictions-SPLIT.parquet and metrics-SPLIT.json.

In memory, and in the files of TMDB's data, samples are `films` and labels are genres. Files of other data have
`samples`, `per_label` and their schema instead; both are read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic import AliasChoices, Field
from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file
from genre_dist.metrics.choosing import named_labels
from genre_dist.printable import printable
from genre_dist.schema import TMDB, Choose, Schema, plural
from genre_dist.sealed import read_sealed, write_sealed
from genre_dist.validation import Count

AGAIN = "evaluate the run again"
_GENERAL = {
    "films": "samples",
    "per_genre": "per_label",
    "fitted_on_these_films": "fitted_on_these_samples",
}
"""The names of metrics in files of other data than TMDB's."""
Samples = Annotated[Count, Field(validation_alias=AliasChoices("films", "samples"))]
Share = Annotated[float, Ge(0), Le(1)]
AGREES_TO = 1e-6
"""Largest difference between the micro F1 of the metrics and that of the predictions."""


class LabelMetrics(TypedDict):
    """Metrics of a label, at threshold 0.5 or as the likeliest."""

    films: Samples
    f1: Share
    precision: Share
    recall: Share
    accuracy: Share
    average_precision: Share | None
    auc: Share | None


class Fitted(TypedDict):
    """Metrics at the thresholds fitted on val."""

    micro_f1: Share


class FieldsMetrics(TypedDict):
    """Metrics of the samples that have some fields and lack the others, at threshold 0.5 or as the likeliest."""

    films: Samples
    micro_f1: Share


class Metrics(TypedDict):
    """The keys that are read of metrics-SPLIT.json, which has more."""

    films: Samples
    micro_f1: Share
    per_genre: Annotated[dict[str, LabelMetrics], Field(validation_alias=AliasChoices("per_genre", "per_label"))]
    left_out: NotRequired[Count]
    fitted: NotRequired[Fitted]
    by_fields: NotRequired[dict[str, FieldsMetrics]]
    schema: NotRequired[Schema]
    """What is declared of the data; absent for TMDB's."""


class Predictions(NamedTuple):
    """Samples by rising id."""

    ids: NDArray[np.int64]  # [samples]
    logits: NDArray[np.float32]  # [samples, labels]
    labels: NDArray[np.bool_]  # [samples, labels]
    keys: list[str] | None = None
    """The ids as the data has them; None if they are these numbers."""


def declared_of(metrics: Metrics) -> Schema:
    """What is declared of the samples and labels of an evaluation."""
    return metrics.get("schema", TMDB)


def predictions_file(run: Path, split: str) -> Path:
    return run / f"predictions-{split}.parquet"


def metrics_file(run: Path, split: str) -> Path:
    return run / f"metrics-{split}.json"


def write_evaluation(
    run: Path, split: str, predictions: Predictions, metrics: Mapping[str, Any], declared: Schema = TMDB
) -> None:
    """Write both files, the metrics last."""
    ids, logits, labels, keys = predictions
    of_tmdb = declared == TMDB
    columns: dict[str, pa.Array] = {"tmdb_id": pa.array(ids, pa.int64())}
    if not of_tmdb:
        columns = {
            "id": pa.array(map(str, ids.tolist()) if keys is None else keys, pa.string()),
            "number": pa.array(ids, pa.int64()),  # the id in the shards' index
        }
    columns |= {
        "logits": pa.array(list(logits), pa.list_(pa.float32())),
        "labels": pa.array(list(labels), pa.list_(pa.bool_())),
    }
    names = json.dumps(list(metrics["per_genre"]))
    table = pa.table(columns).replace_schema_metadata({"genres" if of_tmdb else "labels": names})
    with atomic_file(predictions_file(run, split)) as file:
        pq.write_table(table, file, write_page_checksum=True)
    write_sealed(metrics_file(run, split), dict(metrics) if of_tmdb else _in_general_names(metrics, declared))


def _in_general_names(metrics: Mapping[str, Any], declared: Schema) -> dict[str, Any]:
    """Metrics as the files of other data than TMDB's have them."""
    general = _renamed(metrics)
    if "fitted" in general:
        general["fitted"] = _renamed(general["fitted"])
    if "by_fields" in general:
        general["by_fields"] = {fields: _general_names(row) for fields, row in general["by_fields"].items()}
    return general | {"schema": declared.to_dict()}


def _renamed(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with the general names for films and genres, in the rows of labels too."""
    renamed = _general_names(figures)
    renamed["per_label"] = {label: _general_names(row) for label, row in renamed["per_label"].items()}
    return renamed


def _general_names(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {_GENERAL.get(name, name): value for name, value in figures.items()}


def read_evaluation(run: Path, split: str) -> tuple[Predictions, Metrics]:
    """Both files of a split. Raises ValueError if one is missing or damaged, or if they are of two evaluations."""
    path = metrics_file(run, split)
    if not (path.is_file() and predictions_file(run, split).is_file()):
        raise ValueError(f"{run}: not evaluated on {split} yet; run `genre-dist evaluate {run} --split {split}`")
    metrics = read_metrics(path)
    declared = declared_of(metrics)
    predictions = read_predictions(predictions_file(run, split), list(metrics["per_genre"]), declared)
    films = [row["films"] for row in metrics["per_genre"].values()]
    same = metrics["films"] == len(predictions.ids) and films == predictions.labels.sum(axis=0).tolist()
    if not same or abs(metrics["micro_f1"] - _micro_f1(predictions, declared.labels.choose)) > AGREES_TO:
        raise ValueError(f"{path} and {predictions_file(run, split).name} are not of the same evaluation; {AGAIN}")
    return predictions, metrics


def _micro_f1(predictions: Predictions, choose: Choose) -> float:
    named = named_labels(predictions.logits, choose)
    return float(2 * (named & predictions.labels).sum() / max(1, named.sum() + predictions.labels.sum()))


def read_metrics(path: Path) -> Metrics:
    """The metrics of an evaluation. Raises ValueError for a file of other content."""
    metrics = read_sealed(Metrics, path, AGAIN)
    if not metrics["per_genre"]:
        key, label = ("per_label", "label") if "schema" in metrics else ("per_genre", "genre")
        raise ValueError(f"{path}: {key}: there is no {label}; {AGAIN}")
    return metrics


def read_predictions(path: Path, names: Sequence[str], declared: Schema = TMDB) -> Predictions:
    """The predictions of samples for the labels of these names. Raises ValueError for a file of other content."""
    keys, label = None, plural(declared.label)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            written_for = metadata.get(b"genres", metadata.get(b"labels"))
            if written_for is not None and json.loads(written_for) != list(names):
                raise ValueError(f"they are for other {label}")
            of_tmdb = "number" not in file.schema_arrow.names
            identity = ["tmdb_id"] if of_tmdb else ["number", "id"]
            table = file.read([*identity, "logits", "labels"], use_threads=False)
        ids = _numbers(table[identity[0]], pa.int64())
        if not of_tmdb:
            keys = _strings(table["id"])
        logits = _rows(table["logits"], len(names), pa.float32())
        labels = _rows(table["labels"], len(names), pa.bool_())
    except (pa.ArrowException, OSError, KeyError, ValueError, MemoryError) as error:
        problem = printable(error)[:200]
        raise ValueError(f"{path}: no predictions of {len(names)} {label} ({problem}); {AGAIN}") from None
    if not np.isfinite(logits).all():
        raise ValueError(f"{path}: some logits are not finite; the model's weights have run away")
    if not len(ids):
        raise ValueError(f"{path}: there is no {declared.sample} in it; {AGAIN}")
    order = np.argsort(ids)
    if (ids[order][1:] == ids[order][:-1]).any():
        raise ValueError(f"{path}: some {declared.samples} are in it twice; {AGAIN}")
    return Predictions(ids[order], logits[order], labels[order], keys and [keys[number] for number in order.tolist()])


def _rows(column: pa.ChunkedArray, width: int, kind: pa.DataType) -> NDArray[Any]:
    """A column of lists, all `width` long, as [rows, width]. Raises ValueError for any other column."""
    if not pa.types.is_list(column.type):
        raise ValueError(f"a column of lists is needed, found {column.type}")
    if column.null_count or not pc.all(pc.equal(pc.list_value_length(column), width), min_count=0).as_py():
        raise ValueError(f"some lists are not {width} long")
    return _numbers(pc.list_flatten(column), kind).reshape(len(column), width)


def _strings(column: pa.ChunkedArray) -> list[str]:
    """A column of strings. Raises ValueError for a column with nulls or of another kind."""
    if not pa.types.is_string(column.type) or column.null_count:
        raise ValueError(f"a column of strings is needed, found {column.type} and {column.null_count} missing values")
    return list(column.to_pylist())


def _numbers(column: pa.ChunkedArray, kind: pa.DataType) -> NDArray[Any]:
    """A column as numbers of a kind. Raises ValueError for a column with nulls or of another kind."""
    families = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    if not any(of(column.type) and of(kind) for of in families):
        raise ValueError(f"a column of {kind} is needed, found {column.type}")
    if column.null_count:
        raise ValueError(f"{column.null_count} of its values are missing")
    return column.cast(kind, safe=not pa.types.is_floating(kind)).to_numpy()
