"""Samples of anyone's tars as a schema declares them, with the members that packing would give them.

A sample is a row of a table. Its columns are `__key__`; an extension, which is the text of that member; and
`json.KEY` or `json.KEY.SUB`, a value in the sample's JSON member. Reader processes import this module.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.catalogue.cells import text_of
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.sample_rows import RowReader, Sample, images_of
from genre_dist.packing.tokenizer import Tokenizer
from genre_dist.schema import Field
from genre_dist.stream.index import array_bytes
from genre_dist.stream.sample import load_about

KEY, FILE = "__key__", "__file__"
"""The columns of a sample's key, and of the split that its tar is named after."""
OF_JSON = "json."
IMAGES = ("jpg", "jpeg", "png", "webp")
"""Extensions of an image field whose schema names none."""

Members = Mapping[str, memoryview]
"""The members of a sample in a tar by extension."""


def extensions_of(field: Field) -> tuple[str, ...]:
    """The extensions of an image field; a sample's image is the first of them that it has."""
    return tuple(field.columns[0].split("|")) if field.columns else IMAGES


class TarRows:
    """Reads samples of tars as rows of the columns that a schema names, but for those of images."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        images = {column for field in images_of(reader.schema) for column in field.columns}
        self.columns = {column: needed_by for column, needed_by in reader.columns.items() if column not in images}
        """Column -> what needs it."""
        self._has_json = any(column.startswith(OF_JSON) for column in self.columns)
        self.fields = {field.extension: field for field in reader.schema.fields}

    def row(self, key: str, members: Members, split: str) -> dict[str, Any]:
        """The row of a sample in a tar that is named after a split. Raises ValueError for a damaged JSON member."""
        about = load_about(members["json"]) if self._has_json and "json" in members else {}
        return {column: _cell(column, key, members, about, split) for column in self.columns}


def _cell(column: str, key: str, members: Members, about: Any, split: str) -> Any:
    if column in (KEY, FILE):
        return key if column == KEY else split
    if not column.startswith(OF_JSON):
        return bytes(members[column]) if column in members else None
    for name in column.split(".")[1:]:
        about = about.get(name) if isinstance(about, dict) else None
    return about


class TarSample(Mapping[str, memoryview]):
    """The members that a sample would have in a packed shard, but for images, which are the files as they are.

    Each is made when it is asked for: what cannot be read raises ValueError then.
    """

    def __init__(
        self, rows: TarRows, tokenizer: Tokenizer, key: str, members: Members, split: str, where: str, left_out: LeftOut
    ) -> None:
        """`where` begins messages about the sample; `left_out` counts what is left out of it."""
        self._rows, self._tokenizer, self._left_out = rows, tokenizer, left_out
        self._key, self._members, self._split, self.where = key, members, split, where

    @cached_property
    def row(self) -> dict[str, Any]:
        """The cells by column."""
        try:
            return self._rows.row(self._key, self._members, self._split)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None

    @cached_property
    def id(self) -> str:
        """The id as the data set has it; '' for a blank one."""
        column = self._rows.reader.schema.id
        return text_of(self._key if column == KEY else self.row[column])

    @cached_property
    def sample(self) -> Sample | None:
        """The checked row; None for a sample that is left out for want of a label."""
        return self._rows.reader.sample(self.row, self.id, self.where, self._left_out)

    @property
    def _checked(self) -> Sample:
        if self.sample is None:
            raise ValueError(f"{self.where}: it has no label; run `genre-dist index` again")
        return self.sample

    def columns(self, with_keys: bool) -> set[str]:
        """The columns that have a value here: extensions, columns of the schema, and with_keys all of the JSON member.

        Raises ValueError for a JSON member that is needed and damaged.
        """
        there = {KEY, FILE, *self._members} | {column for column, cell in self.row.items() if text_of(cell)}
        if with_keys and "json" in self._members:
            with suppress(ValueError):
                there |= {f"{OF_JSON}{name}" for name in load_about(self._members["json"])}
        return there

    def has(self, field: Field) -> bool:
        """Whether the sample has a field."""
        return self._image(field) is not None if field.kind == "image" else self._checked.has(field.name)

    def tokens(self, field: Field) -> NDArray[np.int32]:
        """The token ids of a text, int32 [length]."""
        return self._tokenizer.encode(str(self._checked.values[field.name]))

    def _image(self, field: Field) -> memoryview | None:
        there = (self._members[name] for name in extensions_of(field) if name in self._members)
        return next((data for data in there if len(data)), None)

    def __getitem__(self, extension: str) -> memoryview:
        if extension == "json":
            return memoryview(json.dumps({"id": self.id, "labels": self._checked.labels}).encode())
        field = self._rows.fields[extension]
        if not self.has(field):
            raise KeyError(extension)
        if field.kind == "image":
            return self._image(field) or memoryview(b"")
        array = self.tokens(field) if field.kind == "text" else np.array(self._checked.values[field.name], np.float32)
        return memoryview(array_bytes(array))

    def __iter__(self) -> Iterator[str]:
        return (name for name in ("json", *self._rows.fields) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
