"""A table of a declared data set: its rows as samples, each cell checked by what the schema says of its column."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import poster_key, whole_number
from genre_dist.catalogue.tables import GENRE_OF_TEXT, columns_of, items_of, rows_of, text_of
from genre_dist.genres import GENRE_NAMES, INDEX_OF_ID
from genre_dist.printable import printable
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import Field, Schema

Unlabelled = Literal["keep", "leave_out", "refuse"]
LARGEST = 3e38
"""Numbers are packed in 32 bits."""


class Sample(NamedTuple):
    """A row of the table."""

    id: str
    split_by: str
    labels: tuple[str, ...]
    values: dict[str, str | list[float]]
    """Field -> its text ('' without one), or its numbers (NaN where one is missing)."""
    keys: dict[str, str]
    """Image field -> the key of its file, see `poster_key`."""

    def has(self, field: str) -> bool:
        """Whether a text is not blank, or one of the numbers is there."""
        value = self.values[field]
        return bool(value) if isinstance(value, str) else not all(map(math.isnan, value))


@dataclass(frozen=True)
class SampleTable:
    """A table and the schema that it is read by; without classes every label is one."""

    path: Path
    schema: Schema
    unlabelled: Unlabelled

    @cached_property
    def classes(self) -> frozenset[str]:
        return frozenset(self.schema.labels.classes)

    def samples(self, left_out: LeftOut) -> Iterator[Sample]:
        """Every sample in the order of the table; of rows with one id the first counts, the others are left out.

        Raises ValueError naming the row and what is wrong in it.
        """
        seen: set[int] = set()  # numbers take less memory than ids
        for row_number, row in enumerate(rows_of(self.path, {name: name for name in self.columns}), start=1):
            where = f"{self.path}, row {row_number}"
            id = text_of(row.get(self.schema.id))
            if not id:
                raise ValueError(f"{where}: the id is blank (column {self.schema.id!r}); give it one or delete the row")
            number = number_of_id(id)
            if number in seen:
                left_out.add("rows with an id that was there before, left out", f"{self.schema.sample} {id}")
                continue
            labels = self._labels(row.get(self.schema.labels.column), where, left_out)
            if not labels and not self._keeps(id, where, left_out):
                continue
            seen.add(number)
            split_by = text_of(row.get(self.schema.split_by))
            if not split_by:
                column = self.schema.split_by
                raise ValueError(f"{where}: the column {column!r} of --split_by is blank; fill it or delete the row")
            yield Sample(id, split_by, labels, self._values(row, where), self._keys(row, id, left_out))

    def inputs(self, left_out: LeftOut) -> Iterator[Sample]:
        """The same without labels and splits, which the table need not have."""
        seen: set[int] = set()
        for row_number, row in enumerate(rows_of(self.path, {name: name for name in self.input_columns}), start=1):
            where, id = f"{self.path}, row {row_number}", text_of(row.get(self.schema.id))
            if not id:
                raise ValueError(f"{where}: the id is blank (column {self.schema.id!r}); give it one or delete the row")
            if (number := number_of_id(id)) in seen:
                left_out.add("rows with an id that was there before, left out", f"{self.schema.sample} {id}")
                continue
            seen.add(number)
            yield Sample(id, id, (), self._values(row, where), self._keys(row, id, left_out))

    @property
    def input_columns(self) -> dict[str, str]:
        """The columns of fields and id -> what needs them."""
        fields = {column: f"the field {field.name}" for field in self.schema.fields for column in field.columns}
        return {**fields, self.schema.id: "the id"}

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read -> what needs them."""
        schema = self.schema
        return self.input_columns | {schema.split_by: "--split_by", schema.labels.column: "the labels"}

    def _keeps(self, id: str, where: str, left_out: LeftOut) -> bool:
        """Whether a sample without a label is kept. Raises ValueError if it is to be refused."""
        if self.unlabelled == "refuse":
            raise ValueError(
                f"{where}: {self.schema.sample} {id} has no label (column {self.schema.labels.column!r}); give it one, "
                "or --unlabelled leave_out"
            )
        if self.unlabelled == "leave_out":
            left_out.add("samples without a label, left out (see --unlabelled)", f"{self.schema.sample} {id}")
        return self.unlabelled == "keep"

    def _labels(self, cell: Any, where: str, left_out: LeftOut) -> tuple[str, ...]:
        """The labels in a cell, each once, in its order."""
        labels: dict[str, None] = {}
        for name in [text_of(cell)] if text_of(cell) in self.classes else map(_name, items_of(cell)):
            if not name:
                continue
            if self.schema.labels.classes == GENRE_NAMES:
                genre = GENRE_OF_TEXT.get(name.lower())
                if genre is None:
                    left_out.add("labels that are none of TMDB's genres, dropped", f"{printable(name)[:60]} ({where})")
                    continue
                name = GENRE_NAMES[INDEX_OF_ID[genre]]
            elif self.classes and name not in self.classes:
                raise ValueError(
                    f"{where}: the {self.schema.label} {name[:60]!r} is none of the {len(self.classes):,} classes; add "
                    "it to those of --classes, or mend the row"
                )
            if not name.isprintable():
                raise ValueError(f"{where}: the label {name[:60]!r} has characters that cannot be shown")
            labels[name] = None
        if len(labels) > 1 and self.schema.labels.choose == "one":
            two = " and ".join(repr(name[:60]) for name in list(labels)[:2])
            raise ValueError(
                f"{where}: {two} are two labels, where --choose one allows one; mend the row or --choose many. (A "
                "class with | ; or , in its name has to be listed with --classes)"
            )
        return tuple(labels)

    def _values(self, row: Mapping[str, Any], where: str) -> dict[str, str | list[float]]:
        values: dict[str, str | list[float]] = {}
        for field in self.schema.fields:
            if field.kind == "text":
                values[field.name] = " ".join(filter(None, (text_of(row.get(column)) for column in field.columns)))
            elif field.kind == "numbers":
                values[field.name] = [_number(row.get(column), column, where) for column in field.columns]
        return values

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


def images_of(schema: Schema) -> tuple[Field, ...]:
    return tuple(field for field in schema.fields if field.kind == "image")


def open_samples(path: Path, schema: Schema, unlabelled: Unlabelled) -> SampleTable:
    """Check a table's columns. Raises ValueError, listing them, if it lacks one that the schema names."""
    if unlabelled == "keep" and schema.labels.choose == "one":
        raise ValueError("--unlabelled keep is for --choose many: with --choose one every sample has a label")
    table = SampleTable(path, schema, unlabelled)
    _check_columns(path, table.columns)
    return table


def open_inputs(path: Path, schema: Schema) -> SampleTable:
    """The same for a table of samples without labels."""
    table = SampleTable(path, schema, "keep")
    _check_columns(path, table.input_columns)
    return table


def _check_columns(path: Path, needed: Mapping[str, str]) -> None:
    has = columns_of(path)
    for column, needed_by in needed.items():
        if column not in has:
            listed = printable(", ".join(name[:40] for name in has[:40]))
            raise ValueError(f"{path} has no column {column!r} for {needed_by}; it has {listed}")


def _name(item: Any) -> str:
    """A label's name in a list of names, numbers, or objects with a name or an id."""
    if isinstance(item, dict):
        item = text_of(item.get("name")) or item.get("id")
    return whole_number(text_of(item))


def _number(cell: Any, column: str, where: str) -> float:
    """A cell as number, NaN if it is blank. Raises ValueError for text, infinity, and what 32 bits cannot hold."""
    text = text_of(cell)
    try:
        number = float(text) if text else math.nan
    except ValueError:
        raise ValueError(f"{where}: {text[:60]!r} in the column {column!r} is no number; mend or empty it") from None
    if abs(number) > LARGEST:
        raise ValueError(
            f"{where}: {text[:60]} in the column {column!r} is no finite number of 32 bits; mend or empty it"
        )
    return number
