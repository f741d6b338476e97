"""The catalogue: a folder with `movies.parquet` (one row per film) and `posters/` (one image file per film).

Every way of acquiring films writes this, and packing reads it. Rows and posters are streamed; neither is ever held
whole in memory. Both appear under their final names only when complete.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from genre_dist.storage import Place, exists, opened

AnyPlace = TypeVar("AnyPlace", bound=Place)
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
ROWS_PER_GROUP = 1_000
ROWS_PER_BATCH = 250
COPY_CHUNK_BYTES = 1 << 20
HOW_TO_MAKE_ONE = "make one with `genre-dist import`, `genre-dist fetch` or `genre-dist sample`"


def movies_file(catalogue: AnyPlace) -> AnyPlace:
    """Where a catalogue keeps its rows."""
    return cast(AnyPlace, catalogue / "movies.parquet")


def poster_file(catalogue: AnyPlace, tmdb_id: int) -> AnyPlace:
    """Where a catalogue keeps one film's poster; a thousand folders, so that none grows too large to list.

    The name always ends in `.jpg`, but an imported file may hold PNG or WebP: decode by content, not by name.
    """
    return cast(AnyPlace, catalogue / "posters" / f"{tmdb_id % 1000:03d}" / f"{tmdb_id}.jpg")


def partial_file(target: Path) -> Path:
    """The name a file has until it is complete: hidden, and beside its final place so that a rename is atomic."""
    return target.with_name(f".{target.name}.part")


def write_poster(catalogue: Path, tmdb_id: int, source: IO[bytes]) -> tuple[int, str]:
    """Copy a poster from an open file into the catalogue, in chunks; whole under its name or not there at all.

    Returns its size in bytes and its SHA-256 in hex. Raises OSError when the disk is full.
    """
    target = poster_file(catalogue, tmdb_id)
    partial = partial_file(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with partial.open("wb") as copy:
            while chunk := source.read(COPY_CHUNK_BYTES):
                copy.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return size, digest.hexdigest()


class CatalogueWriter:
    """Writes `movies.parquet` row by row, holding at most ROWS_PER_GROUP rows.

    Use it in a `with` block: the file appears, fsynced, when the block ends well. If the block raises, nothing is left
    behind and an older `movies.parquet` stays as it was.
    """

    def __init__(self, catalogue: Path) -> None:
        self.target = movies_file(catalogue)
        self.partial = partial_file(self.target)
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.parquet = pq.ParquetWriter(self.partial, SCHEMA, compression="zstd")
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Take one film: a value, None where unknown, for every name in SCHEMA. ValueError if the names differ."""
        if row.keys() != set(SCHEMA.names):
            wrong = ", ".join(sorted(row.keys() ^ set(SCHEMA.names)))
            raise ValueError(f"film {row.get('tmdb_id')}: missing or unknown columns of the catalogue: {wrong}")
        self.rows.append(row)
        if len(self.rows) == ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        self.parquet.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
        self.rows.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None and self.rows:
                self._write_group()
            self.parquet.close()
            if kind is None:
                with self.partial.open("rb") as file:
                    os.fsync(file.fileno())
                self.partial.replace(self.target)
        finally:
            self.partial.unlink(missing_ok=True)


def read_rows(catalogue: Place, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The catalogue's films in file order, as dicts of `columns` (all of SCHEMA by default), read batch by batch.

    Raises ValueError, at once, if there is no catalogue, it cannot be read, or it lacks one of the columns.
    """
    names = list(SCHEMA.names if columns is None else columns)
    file = _open(catalogue)
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        file.close()
        raise ValueError(
            f"{movies_file(catalogue)} lacks {', '.join(missing)}: it is no catalogue of ours; {HOW_TO_MAKE_ONE}"
        )
    return _stream(file, names)


def _stream(file: pq.ParquetFile, names: list[str]) -> Iterator[dict[str, Any]]:
    with file:
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=names, use_threads=False):
            yield from batch.to_pylist()


def count_rows(catalogue: Place) -> int:
    """How many films the catalogue has, read from the file's footer. ValueError as for `read_rows`."""
    with _open(catalogue) as file:
        return int(file.metadata.num_rows)


def _open(catalogue: Place) -> pq.ParquetFile:
    path = movies_file(catalogue)
    if not exists(path):
        raise ValueError(f"no catalogue in {catalogue} (there is no {path}); {HOW_TO_MAKE_ONE}")
    try:
        return pq.ParquetFile(path if isinstance(path, Path) else opened(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); {HOW_TO_MAKE_ONE}") from error
