"""The files of an evaluation, in a run's folder: predictions-SPLIT.parquet and metrics-SPLIT.json."""

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
from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file
from genre_dist.printable import printable
from genre_dist.sealed import read_sealed, write_sealed
from genre_dist.validation import Count

AGAIN = "evaluate the run again"
Share = Annotated[float, Ge(0), Le(1)]
AGREES_TO = 1e-6
"""Largest difference between the micro F1 of the metrics and that of the predictions."""


class LabelMetrics(TypedDict):
    """Metrics of a genre, at threshold 0.5."""

    films: Count
    f1: Share
    precision: Share
    recall: Share
    accuracy: Share
    average_precision: Share | None
    auc: Share | None


class Fitted(TypedDict):
    """Metrics at the thresholds fitted on val."""

    micro_f1: Share


class Metrics(TypedDict):
    """The keys that are read of metrics-SPLIT.json, which has more."""

    films: Count
    micro_f1: Share
    per_genre: dict[str, LabelMetrics]
    left_out: NotRequired[Count]
    fitted: NotRequired[Fitted]


class Predictions(NamedTuple):
    """Samples by rising id."""

    ids: NDArray[np.int64]  # [samples]
    logits: NDArray[np.float32]  # [samples, labels]
    labels: NDArray[np.bool_]  # [samples, labels]


def predictions_file(run: Path, split: str) -> Path:
    return run / f"predictions-{split}.parquet"


def metrics_file(run: Path, split: str) -> Path:
    return run / f"metrics-{split}.json"


def write_evaluation(run: Path, split: str, predictions: Predictions, metrics: Mapping[str, Any]) -> None:
    """Write both files, the metrics last."""
    ids, logits, labels = predictions
    table = pa.table(
        {
            "tmdb_id": pa.array(ids, pa.int64()),
            "logits": pa.array(list(logits), pa.list_(pa.float32())),
            "labels": pa.array(list(labels), pa.list_(pa.bool_())),
        }
    )
    table = table.replace_schema_metadata({"genres": json.dumps(list(metrics["per_genre"]))})
    with atomic_file(predictions_file(run, split)) as file:
        pq.write_table(table, file, write_page_checksum=True)
    write_sealed(metrics_file(run, split), dict(metrics))


def read_evaluation(run: Path, split: str) -> tuple[Predictions, Metrics]:
    """Both files of a split. Raises ValueError if one is missing or damaged, or if they are of two evaluations."""
    path = metrics_file(run, split)
    if not (path.is_file() and predictions_file(run, split).is_file()):
        raise ValueError(f"{run}: not evaluated on {split} yet; run `genre-dist evaluate {run} --split {split}`")
    metrics = read_metrics(path)
    predictions = read_predictions(predictions_file(run, split), list(metrics["per_genre"]))
    films = [row["films"] for row in metrics["per_genre"].values()]
    same = metrics["films"] == len(predictions.ids) and films == predictions.labels.sum(axis=0).tolist()
    if not same or abs(metrics["micro_f1"] - _micro_f1(predictions)) > AGREES_TO:
        raise ValueError(f"{path} and {predictions_file(run, split).name} are not of the same evaluation; {AGAIN}")
    return predictions, metrics


def _micro_f1(predictions: Predictions) -> float:
    named = predictions.logits > 0
    return float(2 * (named & predictions.labels).sum() / max(1, named.sum() + predictions.labels.sum()))


def read_metrics(path: Path) -> Metrics:
    """The metrics of an evaluation. Raises ValueError for a file of other content."""
    metrics = read_sealed(Metrics, path, AGAIN)
    if not metrics["per_genre"]:
        raise ValueError(f"{path}: per_genre: there is no genre; {AGAIN}")
    return metrics


def read_predictions(path: Path, genres: Sequence[str]) -> Predictions:
    """The predictions of samples for these genres. Raises ValueError for a file of other content."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            written_for = (file.schema_arrow.metadata or {}).get(b"genres")
            if written_for is not None and json.loads(written_for) != list(genres):
                raise ValueError("they are for other genres")
            table = file.read(["tmdb_id", "logits", "labels"], use_threads=False)
        ids = _numbers(table["tmdb_id"], pa.int64())
        logits = _rows(table["logits"], len(genres), pa.float32())
        labels = _rows(table["labels"], len(genres), pa.bool_())
    except (pa.ArrowException, OSError, KeyError, ValueError, MemoryError) as error:
        problem = printable(error)[:200]
        raise ValueError(f"{path}: no predictions of {len(genres)} genres ({problem}); {AGAIN}") from None
    if not np.isfinite(logits).all():
        raise ValueError(f"{path}: some logits are not finite; the model's weights have run away")
    if not len(ids):
        raise ValueError(f"{path}: there is no film in it; {AGAIN}")
    order = np.argsort(ids)
    if (ids[order][1:] == ids[order][:-1]).any():
        raise ValueError(f"{path}: some films are in it twice; {AGAIN}")
    return Predictions(ids[order], logits[order], labels[order])


def _rows(column: pa.ChunkedArray, width: int, kind: pa.DataType) -> NDArray[Any]:
    """A column of lists, all `width` long, as [rows, width]. Raises ValueError for any other column."""
    if not pa.types.is_list(column.type):
        raise ValueError(f"a column of lists is needed, found {column.type}")
    if column.null_count or not pc.all(pc.equal(pc.list_value_length(column), width), min_count=0).as_py():
        raise ValueError(f"some lists are not {width} long")
    return _numbers(pc.list_flatten(column), kind).reshape(len(column), width)


def _numbers(column: pa.ChunkedArray, kind: pa.DataType) -> NDArray[Any]:
    """A column as numbers of a kind. Raises ValueError for a column with nulls or of another kind."""
    families = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    if not any(of(column.type) and of(kind) for of in families):
        raise ValueError(f"a column of {kind} is needed, found {column.type}")
    if column.null_count:
        raise ValueError(f"{column.null_count} of its values are missing")
    return column.cast(kind, safe=not pa.types.is_floating(kind)).to_numpy()
