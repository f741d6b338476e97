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
"""So closely the micro F1 of the metrics is that of the predictions."""


class GenreFigures(TypedDict):
    """A genre, at threshold 0.5."""

    films: Count
    f1: Share
    precision: Share
    recall: Share
    accuracy: Share
    average_precision: Share | None
    auc: Share | None


class Fitted(TypedDict):
    """At the thresholds fitted on val."""

    micro_f1: Share


class Metrics(TypedDict):
    """What is read of metrics-SPLIT.json; there is more in it."""

    films: Count
    micro_f1: Share
    per_genre: dict[str, GenreFigures]
    left_out: NotRequired[Count]
    fitted: NotRequired[Fitted]


class Predictions(NamedTuple):
    """Films by rising id."""

    ids: NDArray[np.int64]  # [films]
    logits: NDArray[np.float32]  # [films, genres]
    labels: NDArray[np.bool_]  # [films, genres]


def predictions_file(run: Path, split: str) -> Path:
    return run / f"predictions-{split}.parquet"


def metrics_file(run: Path, split: str) -> Path:
    return run / f"metrics-{split}.json"


def write_evaluation(run: Path, split: str, predictions: Predictions, told: Mapping[str, Any]) -> None:
    """Write both files, the metrics last."""
    ids, logits, labels = predictions
    table = pa.table(
        {
            "tmdb_id": pa.array(ids, pa.int64()),
            "logits": pa.array(list(logits), pa.list_(pa.float32())),
            "labels": pa.array(list(labels), pa.list_(pa.bool_())),
        }
    )
    table = table.replace_schema_metadata({"genres": json.dumps(list(told["per_genre"]))})
    with atomic_file(predictions_file(run, split)) as file:
        pq.write_table(table, file, write_page_checksum=True)
    write_sealed(metrics_file(run, split), dict(told))


def read_evaluation(run: Path, split: str) -> tuple[Predictions, Metrics]:
    """Both files of a split. Raises ValueError if one is missing, damaged, or not of the same evaluation."""
    path = metrics_file(run, split)
    if not (path.is_file() and predictions_file(run, split).is_file()):
        raise ValueError(f"{run}: not evaluated on {split} yet; run `genre-dist evaluate {run} --split {split}`")
    told = read_metrics(path)
    found = read_predictions(predictions_file(run, split), list(told["per_genre"]))
    films = [row["films"] for row in told["per_genre"].values()]
    same = told["films"] == len(found.ids) and films == found.labels.sum(axis=0).tolist()
    if not same or abs(told["micro_f1"] - _micro_f1(found)) > AGREES_TO:
        raise ValueError(f"{path} and {predictions_file(run, split).name} are not of the same evaluation; {AGAIN}")
    return found, told


def _micro_f1(found: Predictions) -> float:
    named = found.logits > 0
    return float(2 * (named & found.labels).sum() / max(1, named.sum() + found.labels.sum()))


def read_metrics(path: Path) -> Metrics:
    """The metrics of an evaluation. Raises ValueError if the file is not that."""
    told = read_sealed(Metrics, path, AGAIN)
    if not told["per_genre"]:
        raise ValueError(f"{path}: per_genre: there is no genre; {AGAIN}")
    return told


def read_predictions(path: Path, genres: Sequence[str]) -> Predictions:
    """The predictions of films for these genres. Raises ValueError if the file is not that."""
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
        told = printable(error)[:200]
        raise ValueError(f"{path}: no predictions of {len(genres)} genres ({told}); {AGAIN}") from None
    if not np.isfinite(logits).all():
        raise ValueError(f"{path}: some logits are not finite; the model's weights have run away")
    if not len(ids):
        raise ValueError(f"{path}: there is no film in it; {AGAIN}")
    order = np.argsort(ids)
    if (ids[order][1:] == ids[order][:-1]).any():
        raise ValueError(f"{path}: some films are in it twice; {AGAIN}")
    return Predictions(ids[order], logits[order], labels[order])


def _rows(column: pa.ChunkedArray, width: int, kind: pa.DataType) -> NDArray[Any]:
    """A column of lists, all `width` long, as [rows, width]. Raises ValueError if it is not that."""
    if not pa.types.is_list(column.type):
        raise ValueError(f"a column of lists is needed, found {column.type}")
    if column.null_count or not pc.all(pc.equal(pc.list_value_length(column), width), min_count=0).as_py():
        raise ValueError(f"some lists are not {width} long")
    return _numbers(pc.list_flatten(column), kind).reshape(len(column), width)


def _numbers(column: pa.ChunkedArray, kind: pa.DataType) -> NDArray[Any]:
    """A column without nulls. Raises ValueError if it is not that, or of another kind of numbers."""
    families = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    if not any(of(column.type) and of(kind) for of in families):
        raise ValueError(f"a column of {kind} is needed, found {column.type}")
    if column.null_count:
        raise ValueError(f"{column.null_count} of its values are missing")
    return column.cast(kind, safe=not pa.types.is_floating(kind)).to_numpy()
