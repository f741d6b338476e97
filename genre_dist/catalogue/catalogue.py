"""The catalogue: a folder with `movies.parquet` (one row per film) and `posters/` (one image file per film).

Import, fetch and sample write a catalogue, and packing reads it. Rows are streamed, posters written one by one. Both
appear under their final names only when complete.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from genre_dist.atomic import atomic_file, remove_leftovers
from genre_dist.catalogue.parquet import open_parquet, stream_rows
from genre_dist.printable import printable
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
ROWS_PER_GROUP = 1_000
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
    target = poster_file(catalogue, tmdb_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target, sync=False) as file:
        file.write(data)
    return len(data), hashlib.sha256(data).hexdigest()


def remove_partial_files(catalogue: Path) -> None:
    """Remove the partial files of killed writers; the caller holds the catalogue's lock."""
    for folder in (catalogue, catalogue / ".fetch", *catalogue.glob("posters/*")):
        remove_leftovers(folder)


class CatalogueWriter:
    """Writes `movies.parquet` row by row, with at most ROWS_PER_GROUP rows in memory.

    Use it in a `with` block: the file appears, fsynced, when the block ends without an error. If the block raises, no
    partial file stays and an older `movies.parquet` keeps its bytes.
    """

    def __init__(self, catalogue: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self._writing = self._written(movies_file(catalogue))

    @contextmanager
    def _written(self, path: Path) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_file(path) as file,
            pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as self.parquet,
        ):
            yield
            if self.rows:
                self._write_group()

    def __enter__(self) -> Self:
        self._writing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writing.__exit__(*error)

    def add(self, row: dict[str, Any]) -> None:
        """Add one film: a value, None if unknown, for every name in SCHEMA. Raises ValueError if the names differ."""
        if row.keys() != set(SCHEMA.names):
            wrong = ", ".join(sorted(row.keys() ^ set(SCHEMA.names)))
            raise ValueError(f"film {row.get('tmdb_id')}: missing or unknown columns of the catalogue: {wrong}")
        self.rows.append(row)
        if len(self.rows) == ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        self.parquet.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
        self.rows.clear()


def read_rows(catalogue: AnyPath, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The catalogue's films in file order, as dicts of `columns` (all of SCHEMA by default), read batch by batch.

    Raises ValueError, at once, if the catalogue is missing, unreadable, or lacks one of the columns or has it with
    another type; during the iteration, for a damaged file and for a film without an id.
    """
    names = list(SCHEMA.names if columns is None else columns)
    file = _open(catalogue)
    missing = [name for name in names if file.schema_arrow.names.count(name) != 1]
    other = [] if missing else [field for field in map(file.schema_arrow.field, names) if not _fits(field)]
    if missing or other:
        file.close()
        types = ", ".join(f"{field.name} as {field.type}" for field in other)
        problem = f"has {printable(types)[:300]}" if other else f"lacks {', '.join(missing)} (or has them twice)"
        raise ValueError(f"{movies_file(catalogue)} {problem}: it is no catalogue of ours; {HOW_TO_MAKE_ONE}")
    schema = pa.schema([SCHEMA.field(name) for name in names])
    return _checked(stream_rows(file, movies_file(catalogue), names, HOW_TO_MAKE_ONE, schema), movies_file(catalogue))


def _fits(field: pa.Field) -> bool:
    """Whether a column's type can be cast to the catalogue's."""
    kind, wanted = field.type, SCHEMA.field(field.name).type
    return bool(kind == wanted or pa.types.is_null(kind) or any(of(kind) and of(wanted) for of in _KINDS))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of_integers(kind: pa.DataType) -> bool:
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type))


_KINDS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp, _is_text, _is_list_of_integers)


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
