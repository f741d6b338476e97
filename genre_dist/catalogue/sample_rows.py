"""Rows of a declared data set, of a table or of tars, as samples: each cell checked by what the schema says of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from genre_dist.catalogue.cells import GENRE_OF_TEXT, items_of, text_of, whole_number
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.genres import GENRE_NAMES, INDEX_OF_ID
from genre_dist.printable import printable
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
    keys: dict[str, str] = {}  # noqa: RUF012 (never changed)
    """Of a table: image field -> the key of its file, see `poster_key`."""

    def has(self, field: str) -> bool:
        """Whether a text is not blank, or one of the numbers is there."""
        value = self.values[field]
        return bool(value) if isinstance(value, str) else not all(map(math.isnan, value))


def images_of(schema: Schema) -> tuple[Field, ...]:
    return tuple(field for field in schema.fields if field.kind == "image")


@dataclass(frozen=True)
class RowReader:
    """What a schema says of rows; without classes every label is one. Raises ValueError for an impossible option."""

    schema: Schema
    unlabelled: Unlabelled = "keep"
    labelled: bool = True
    """Whether rows have labels and splits, which inputs of a prediction need not have."""

    def __post_init__(self) -> None:
        if self.labelled and self.unlabelled == "keep" and self.schema.labels.choose == "one":
            raise ValueError("--unlabelled keep is for --choose many: with --choose one every sample has a label")

    @cached_property
    def classes(self) -> frozenset[str]:
        return frozenset(self.schema.labels.classes)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read -> what needs them."""
        schema = self.schema
        fields = {column: f"the field {field.name}" for field in schema.fields for column in field.columns}
        labels = {schema.split_by: "--split_by", schema.labels.column: "the labels"} if self.labelled else {}
        return {**fields, schema.id: "the id", **labels}

    def sample(self, row: Mapping[str, Any], id: str, where: str, left_out: LeftOut) -> Sample | None:
        """The sample of a row; None if it is left out for want of a label. Raises ValueError for a wrong cell."""
        labels: tuple[str, ...] = ()
        split_by = id
        if self.labelled:
            labels = self._labels(row.get(self.schema.labels.column), where, left_out)
            if not labels and not self._keeps(id, where, left_out):
                return None
            split_by = text_of(row.get(self.schema.split_by))
            if not split_by:
                column = self.schema.split_by
                raise ValueError(f"{where}: the column {column!r} of --split_by is blank; fill it or delete the row")
        return Sample(id, split_by, labels, self._values(row, where))

    def _keeps(self, id: str, where: str, left_out: LeftOut) -> bool:
        """Whether a sample without a label is kept. Raises ValueError where such samples are refused."""
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
                values[field.name] = [number_of(row.get(column), column, where) for column in field.columns]
        return values


def _name(item: Any) -> str:
    """A label's name in a list of names, numbers, or objects with a name or an id."""
    if isinstance(item, dict):
        item = text_of(item.get("name")) or item.get("id")
    return whole_number(text_of(item))


def number_of(cell: Any, column: str, where: str) -> float:
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
