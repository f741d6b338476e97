"""Parquet files from outside: every fault becomes a ValueError of one line with the file's name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genre_dist.printable import printable
from genre_dist.storage import AnyPath, opened

ROWS_PER_BATCH = 250


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


@contextmanager
def _named(path: AnyPath, problem: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} {problem} ({printable(error)[:300]}); {remedy}") from error
