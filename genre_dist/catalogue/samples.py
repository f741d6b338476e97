"""The catalogue of a declared data set: `samples.parquet` (a row a sample), `schema.json` and `images/FIELD/`.

It is written by import as TMDB's is (see `catalogue.py`), whose folder holds `movies.parquet` instead. The classes in
its schema are always known.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from genre_dist.catalogue.catalogue import SomePath, samples_file
from genre_dist.catalogue.parquet import RowWriter, open_parquet, stream_checked
from genre_dist.schema import Schema
from genre_dist.sealed import read_sealed, write_sealed
from genre_dist.storage import AnyPath, exists

HOW_TO_MAKE_ONE = "make one with `genre-dist import --id COLUMN --labels COLUMN ...`"


def schema_file(catalogue: SomePath) -> SomePath:
    """The path of a catalogue's schema."""
    return cast(SomePath, catalogue / "schema.json")


def image_file(catalogue: SomePath, field: str, number: int) -> SomePath:
    """The path of a sample's image, by the number of its id: the id may be anything that no file can be called.

    The name always ends in `.jpg`, but the file may hold PNG or WebP: decode by content, not by name.
    """
    return cast(SomePath, catalogue / "images" / field / f"{number % 1000:03d}" / f"{number:016x}.jpg")


def columns_of_rows(schema: Schema) -> pa.Schema:
    """The columns of `samples.parquet`: id, split_by and labels, then those of each field.

    A text is a string ('' without one), `numbers` a list of as many as the field has columns, NaN where one is missing.
    Of an image there are `NAME:status` ('ok', 'none' or 'failed: reason'), `NAME:bytes` and `NAME:sha256`.
    """
    columns = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split_by", pa.string(), nullable=False),
        ("labels", pa.list_(pa.string())),  # names of classes, in the order of the table
    ]
    for field in schema.fields:
        if field.kind == "text":
            columns.append((field.name, pa.string()))
        elif field.kind == "numbers":
            columns.append((field.name, pa.list_(pa.float64())))
        else:
            columns.append((f"{field.name}:status", pa.string()))
            columns.append((f"{field.name}:bytes", pa.int64()))
            columns.append((f"{field.name}:sha256", pa.string()))
    return pa.schema(columns)


class SampleWriter(RowWriter):
    """Writes `schema.json`, then `samples.parquet` sample by sample; see RowWriter."""

    def __init__(self, catalogue: Path, schema: Schema) -> None:
        write_sealed(schema_file(catalogue), schema.to_dict())
        super().__init__(samples_file(catalogue), columns_of_rows(schema), schema.sample)


def load_catalogue_schema(catalogue: AnyPath) -> Schema:
    """The schema of a declared data set's catalogue. Raises ValueError if it is missing, damaged or without classes."""
    path = schema_file(catalogue)
    if not exists(path):
        raise ValueError(f"no catalogue of a declared data set in {catalogue} (there is no {path}); {HOW_TO_MAKE_ONE}")
    schema = read_sealed(Schema, path, HOW_TO_MAKE_ONE)
    if len(schema.labels.classes) < 2:
        raise ValueError(f"{path}: labels.classes: fewer than two classes; {HOW_TO_MAKE_ONE}")
    return schema


def read_samples(catalogue: AnyPath, schema: Schema, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows in file order, as dicts of `columns` (all by default), read batch by batch.

    Raises ValueError, at once, if the file is missing, unreadable, or lacks one of the columns or has it with another
    type; during the iteration, for a damaged file, a blank id or split, an unknown label, or another number of numbers.
    """
    path, kinds = samples_file(catalogue), columns_of_rows(schema)
    if not exists(path):
        raise ValueError(f"no catalogue in {catalogue} (there is no {path}); {HOW_TO_MAKE_ONE}")
    names = list(kinds.names if columns is None else columns)
    file = open_parquet(path, HOW_TO_MAKE_ONE)
    return _checked(stream_checked(file, path, names, HOW_TO_MAKE_ONE, kinds), path, schema)


def _checked(rows: Iterator[dict[str, Any]], path: AnyPath, schema: Schema) -> Iterator[dict[str, Any]]:
    classes = frozenset(schema.labels.classes)
    lengths = {field.name: len(field.columns) for field in schema.fields if field.kind == "numbers"}
    for number, row in enumerate(rows, start=1):
        wrong = [f"a blank {name}" for name in ("id", "split_by") if name in row and not row[name]]
        wrong += [
            f"the unknown {schema.label} {name!r}"[:100] for name in row.get("labels") or () if name not in classes
        ]
        for name, length in lengths.items():
            if name in row and (row[name] is None or len(row[name]) != length or None in row[name]):
                wrong.append(f"not {length} numbers in {name}")
        if wrong:
            raise ValueError(f"{path}, row {number}: {wrong[0]}; {HOW_TO_MAKE_ONE}")
        yield row
