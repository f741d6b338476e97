"""The catalogue: a folder with `movies.parquet` (one row per film) and `posters/` (one image file per film).

Import, fetch and sample write a catalogue, and packing reads it. Rows are streamed, posters written one by one. Both
appear under their final names only when complete.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from genre_dist.atomic import atomic_file, remove_leftovers
from genre_dist.catalogue.parquet import ROWS_PER_GROUP as ROWS_PER_GROUP
from genre_dist.catalogue.parquet import RowWriter, open_parquet, stream_checked
from genre_dist.storage import AnyPath, exists

SomePath = TypeVar("SomePath", bound=AnyPath)
SCHEMA = pa.schema(
    [
        pa.field("tmdb_id", pa.int64(), nullable=False),
        ("imdb_id", pa.string()),
        ("title", pa.string()),
        ("original_language", pa.string()),
        ("overview", pa.string()),
        ("genre_ids", pa.list_(pa.int32())),  # TMDB's ids, in the order of the source
        ("release_date", pa.string()),  # '', 'YYYY' or 'YYYY-MM-DD'
        ("poster_path", pa.string()),  # TMDB's own path, not a path on this machine
        ("popularity", pa.float32()),
        ("adult", pa.bool_()),
        ("poster_status", pa.string()),  # 'ok', 'none' or 'failed: reason'
        ("poster_bytes", pa.int64()),
        ("poster_sha256", pa.string()),
        ("fetched_at", pa.timestamp("s", tz="UTC")),  # null for imports and samples; Parquet keeps it as milliseconds
    ]
)
HOW_TO_MAKE_ONE = "make one with `genre-dist import`, `genre-dist fetch` or `genre-dist sample`"


def movies_file(catalogue: SomePath) -> SomePath:
    """The path of a catalogue's rows."""
    return cast(SomePath, catalogue / "movies.parquet")


def poster_file(catalogue: SomePath, tmdb_id: int) -> SomePath:
    """The path of one film's poster; posters lie in a thousand folders, so that none grows too large to list.

    The name always ends in `.jpg`, but an imported file may hold PNG or WebP: decode by content, not by name.
    """
    return cast(SomePath, catalogue / "posters" / f"{tmdb_id % 1000:03d}" / f"{tmdb_id}.jpg")


def write_poster(catalogue: Path, tmdb_id: int, data: bytes) -> tuple[int, str]:
    """Write a poster into the catalogue atomically.

    Returns its size in bytes and its SHA-256 in hex. Raises OSError when the disk is full.
    """
    return write_image(poster_file(catalogue, tmdb_id), data)


def write_image(target: Path, data: bytes) -> tuple[int, str]:
    """Write an image file atomically, as `write_poster` does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target, sync=False) as file:
        file.write(data)
    return len(data), hashlib.sha256(data).hexdigest()


def samples_file(catalogue: SomePath) -> SomePath:
    """The path of the rows of a declared data set's catalogue, see `samples.py`."""
    return cast(SomePath, catalogue / "samples.parquet")


def holds_catalogue(folder: Path) -> bool:
    """Whether a folder has a catalogue of either kind."""
    return movies_file(folder).exists() or samples_file(folder).exists()


def remove_catalogue(folder: Path) -> None:
    """Remove a catalogue of either kind, its rows first; the caller holds the folder's lock."""
    for file in (movies_file(folder), samples_file(folder), folder / "schema.json"):
        file.unlink(missing_ok=True)
    for images in ("posters", "images"):
        shutil.rmtree(folder / images, ignore_errors=True)


def remove_partial_files(catalogue: Path) -> None:
    """Remove the partial files of killed writers; the caller holds the catalogue's lock."""
    for folder in (catalogue, catalogue / ".fetch", *catalogue.glob("posters/*"), *catalogue.glob("images/*/*")):
        remove_leftovers(folder)


class CatalogueWriter(RowWriter):
    """Writes `movies.parquet` film by film; see RowWriter."""

    def __init__(self, catalogue: Path) -> None:
        super().__init__(movies_file(catalogue), SCHEMA, "film")


def read_rows(catalogue: AnyPath, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The catalogue's films in file order, as dicts of `columns` (all of SCHEMA by default), read batch by batch.

    Raises ValueError, at once, if the catalogue is missing, unreadable, or lacks one of the columns or has it with
    another type; during the iteration, for a damaged file and for a film without an id.
    """
    names = list(SCHEMA.names if columns is None else columns)
    rows = stream_checked(_open(catalogue), movies_file(catalogue), names, HOW_TO_MAKE_ONE, SCHEMA)
    return _checked(rows, movies_file(catalogue))


def _checked(rows: Iterator[dict[str, Any]], path: AnyPath) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        if "tmdb_id" in row and not (row["tmdb_id"] or 0) > 0:
            raise ValueError(f"{path}, row {number}: {row['tmdb_id']} is no film's id; {HOW_TO_MAKE_ONE}")
        yield row


def count_rows(catalogue: AnyPath) -> int:
    """The number of films, read from the file's footer. Raises ValueError as `read_rows` does."""
    with _open(catalogue) as file:
        return int(file.metadata.num_rows)


def _open(catalogue: AnyPath) -> pq.ParquetFile:
    path = movies_file(catalogue)
    if not exists(path):
        raise ValueError(f"no catalogue in {catalogue} (there is no {path}); {HOW_TO_MAKE_ONE}")
    return open_parquet(path, HOW_TO_MAKE_ONE)
