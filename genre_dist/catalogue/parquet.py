"""Parquet files: rows are streamed in and out; every fault becomes a ValueError of one line with the file's name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from genre_dist.atomic import atomic_file
from genre_dist.printable import printable
from genre_dist.storage import AnyPath, opened

ROWS_PER_BATCH = 250
ROWS_PER_GROUP = 1_000


class RowWriter:
    """Writes a file row by row, with at most ROWS_PER_GROUP rows in memory.

    Use it in a `with` block: the file appears, fsynced, when the block ends without an error. If the block raises, no
    partial file stays and an older file keeps its bytes.
    """

    def __init__(self, path: Path, schema: pa.Schema, what: str) -> None:
        """`what` a row is, in words; its first column identifies it."""
        self.rows: list[dict[str, Any]] = []
        self._schema, self._what = schema, what
        self._writing = self._written(path)

    @contextmanager
    def _written(self, path: Path) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_file(path) as file,
            pq.ParquetWriter(file, self._schema, compression="zstd", write_page_checksum=True) as self.parquet,
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
        """Add a row: a value, None if unknown, for every name in the schema. Raises ValueError if the names differ."""
        if row.keys() != set(self._schema.names):
            wrong = ", ".join(sorted(row.keys() ^ set(self._schema.names)))
            which = row.get(self._schema.names[0])
            raise ValueError(f"{self._what} {which}: missing or unknown columns of the catalogue: {wrong}")
        self.rows.append(row)
        if len(self.rows) == ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        self.parquet.write_table(pa.Table.from_pylist(self.rows, schema=self._schema))
        self.rows.clear()


def open_parquet(path: AnyPath, remedy: str) -> pq.ParquetFile:
    """An open file, which the caller closes. Raises ValueError, with the remedy, if it is no Parquet file."""
    with _named(path, "cannot be read as Parquet", remedy):
        return pq.ParquetFile(path if isinstance(path, Path) else opened(path), page_checksum_verification=True)


def stream_rows(
    file: pq.ParquetFile, path: AnyPath, names: Sequence[str], remedy: str, schema: pa.Schema | None = None
) -> Iterator[dict[str, Any]]:
    """The rows, a batch in memory at a time, cast to `schema` if given. Raises ValueError for a damaged file."""
    with file, _named(path, "is damaged", remedy):
        read = 0
        if missing := set(names) - set(file.schema_arrow.names):
            raise ValueError(f"no column {min(missing)}")
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=list(names), use_threads=False):
            table = pa.Table.from_batches([batch])
            yield from (table if schema is None else table.cast(schema)).to_pylist()
            read += len(batch)
        if read != file.metadata.num_rows:
            raise ValueError(f"{read:,} rows where there should be {file.metadata.num_rows:,}")


def stream_checked(
    file: pq.ParquetFile, path: AnyPath, names: Sequence[str], remedy: str, schema: pa.Schema
) -> Iterator[dict[str, Any]]:
    """The rows of a file of ours, as `stream_rows`.

    Raises ValueError, at once, if the file lacks one of the columns or has it with another type than `schema`.
    """
    missing = [name for name in names if file.schema_arrow.names.count(name) != 1]
    other = [] if missing else [field for field in map(file.schema_arrow.field, names) if not _fits(field, schema)]
    if missing or other:
        file.close()
        types = ", ".join(f"{field.name} as {field.type}" for field in other)
        problem = f"has {printable(types)[:300]}" if other else f"lacks {', '.join(missing)} (or has them twice)"
        raise ValueError(f"{path} {problem}: it is no catalogue of ours; {remedy}")
    return stream_rows(file, path, names, remedy, pa.schema([schema.field(name) for name in names]))


def _fits(field: pa.Field, schema: pa.Schema) -> bool:
    """Whether a column's type can be cast to the schema's."""
    kind, wanted = field.type, schema.field(field.name).type
    return bool(kind == wanted or pa.types.is_null(kind) or any(of(kind) and of(wanted) for of in _KINDS))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and of(kind.value_type))


_ALONE = (pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp, _is_text)
_KINDS = (*_ALONE, *(partial(_is_list_of, of=of) for of in (pa.types.is_integer, pa.types.is_floating, _is_text)))


@contextmanager
def _named(path: AnyPath, problem: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} {problem} ({printable(error)[:300]}); {remedy}") from error
