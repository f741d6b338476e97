"""A table of a declared data set: its rows as samples, each cell checked by what the schema says of its column."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genre_dist.catalogue.cells import text_of
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import poster_key
from genre_dist.catalogue.sample_rows import RowReader, Sample, Unlabelled
from genre_dist.catalogue.sample_rows import images_of as images_of
from genre_dist.catalogue.tables import columns_of, rows_of
from genre_dist.printable import printable
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import Schema


@dataclass(frozen=True)
class SampleTable:
    """A table and the schema that it is read by; without classes every label is one."""

    path: Path
    rows: RowReader

    @property
    def schema(self) -> Schema:
        return self.rows.schema

    def samples(self, left_out: LeftOut) -> Iterator[Sample]:
        """Every sample in the order of the table; of rows with one id the first counts, the others are left out.

        Raises ValueError naming the row and what is wrong in it.
        """
        seen: set[int] = set()  # numbers take less memory than ids
        for row_number, row in enumerate(rows_of(self.path, {name: name for name in self.rows.columns}), start=1):
            where, id = f"{self.path}, row {row_number}", text_of(row.get(self.schema.id))
            if not id:
                raise ValueError(f"{where}: the id is blank (column {self.schema.id!r}); give it one or delete the row")
            if (number := number_of_id(id)) in seen:
                left_out.add("rows with an id that was there before, left out", f"{self.schema.sample} {id}")
            elif sample := self.rows.sample(row, id, where, left_out):
                seen.add(number)
                yield sample._replace(keys=self._keys(row, id, left_out))

    def _keys(self, row: Mapping[str, Any], id: str, left_out: LeftOut) -> dict[str, str]:
        keys = {}
        for field in images_of(self.schema):
            if field.columns:
                keys[field.name] = poster_key(text_of(row.get(field.columns[0])))
            elif re.search(r"[/\\]", id):  # the last part of it could be another sample's name
                keys[field.name] = ""
                left_out.add("samples whose id has a slash, as no file can be called, without images found by ids", id)
            else:
                keys[field.name] = poster_key(id)
        return keys


def open_samples(path: Path, schema: Schema, unlabelled: Unlabelled) -> SampleTable:
    """Check a table's columns. Raises ValueError, listing them, if it lacks one that the schema names."""
    return _checked(SampleTable(path, RowReader(schema, unlabelled)))


def open_inputs(path: Path, schema: Schema) -> SampleTable:
    """The same for a table of samples without labels and splits."""
    return _checked(SampleTable(path, RowReader(schema, labelled=False)))


def _checked(table: SampleTable) -> SampleTable:
    path, has = table.path, columns_of(table.path)
    for column, needed_by in table.rows.columns.items():
        if column not in has:
            listed = printable(", ".join(name[:40] for name in has[:40]))
            raise ValueError(f"{path} has no column {column!r} for {needed_by}; it has {listed}")
    return table
