"""The rows of a catalogue as packing needs them: of TMDB's films, or of a declared data set.

What packing does next is the same for both. A shard's samples go to their worker as lines of JSON, whose bytes are a
part of the shard's key: films keep those of earlier versions.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from genre_dist.catalogue.catalogue import poster_file, read_rows, samples_file
from genre_dist.catalogue.samples import image_file, load_catalogue_schema, read_samples
from genre_dist.genres import GENRES, INDEX_OF_ID
from genre_dist.packing.recipe import Recipe
from genre_dist.sample_ids import LONGEST_KEY, member_key, number_of_id
from genre_dist.schema import TMDB, Field, Schema
from genre_dist.storage import AnyPath, exists

COLUMNS = ["tmdb_id", "title", "overview", "genre_ids", "release_date", "poster_status", "poster_sha256"]
LONGEST_NAME = 100
"""Bytes of a member's name in a tar's header."""


class Row(NamedTuple):
    """A row of a catalogue."""

    id: int
    """Its number in the index."""
    split_id: int
    """The number that decides the split: the id, or that of what the sample is split by."""
    reason: str | None
    """Why it is left out, None if it is packed."""
    text: str
    """Its words are counted for the vocabulary."""
    numbers: dict[str, list[float]]
    """Field -> its numbers, NaN where one is missing."""
    line: Callable[[], dict[str, Any]]
    """Makes the sample's line of JSON."""


class Line(NamedTuple):
    """A sample's line of JSON, read by the worker that packs it."""

    number: int
    """Its number in the index."""
    id: int | str
    """As reports name it."""
    key: str
    """Of its members in the tar."""
    about: dict[str, Any]
    """The member .json."""
    labels: list[Any]
    """Ids of genres, or names of classes."""
    fields: dict[str, Any]
    """Field -> its text, its numbers or the checksum of its image; None without it."""


def schema_of(catalogue: AnyPath) -> Schema:
    """The schema of a catalogue. Raises ValueError for a declared data set whose schema is missing or damaged."""
    return load_catalogue_schema(catalogue) if exists(samples_file(catalogue)) else TMDB


def rows_of(catalogue: AnyPath, schema: Schema, recipe: Recipe) -> Iterator[Row]:
    """The rows of a catalogue in its order. Raises ValueError for an id that is too long for a tar."""
    return _films(catalogue, recipe) if schema == TMDB else _samples(catalogue, schema, recipe)


def read_line(line: dict[str, Any], schema: Schema) -> Line:
    """The line that a Row made, as JSON brought it back."""
    if schema == TMDB:
        film, text = line["tmdb_id"], line["text"]
        about = {name: line[name] for name in ("tmdb_id", "title", "genre_ids", "release_date")}
        fields = {"poster": line["poster"], "overview": text if text.strip() else None}
        return Line(film, film, str(film), about, line["genre_ids"], fields)
    id, labels = line["id"], line["labels"]
    return Line(number_of_id(id), id, member_key(id), {"id": id, "labels": labels}, labels, line["fields"])


def number_in(line: dict[str, Any]) -> int:
    """The number of a line's sample."""
    return int(line["tmdb_id"] if "tmdb_id" in line else number_of_id(line["id"]))


def image_path(catalogue: AnyPath, schema: Schema, field: str, number: int) -> AnyPath:
    """The file of a sample's image in its catalogue."""
    return poster_file(catalogue, number) if schema == TMDB else image_file(catalogue, field, number)


def label_ids(schema: Schema) -> list[Any]:
    """The labels as lines have them, in the order of logits."""
    return [genre.id for genre in GENRES] if schema == TMDB else list(schema.labels.classes)


def film_text(row: dict[str, Any], text: str) -> str:
    """The text a film is trained on: its overview, its title, or the title followed by the overview."""
    parts = {"overview": [row["overview"]], "title": [row["title"]], "both": [row["title"], row["overview"]]}[text]
    return " ".join(part.strip() for part in parts if part)


def _films(catalogue: AnyPath, recipe: Recipe) -> Iterator[Row]:
    for row in read_rows(catalogue, COLUMNS):
        film, words = row["tmdb_id"], f"{row['title'] or ''} {row['overview'] or ''}"
        yield Row(film, film, _why_not(row, recipe.require), words, {}, partial(_line_of_film, row, recipe.text))


def _why_not(row: dict[str, Any], require: tuple[str, ...]) -> str | None:
    """The reason to leave a film out, or None."""
    if not any(genre in INDEX_OF_ID for genre in row["genre_ids"] or ()):
        return "no known genre"
    if "poster" in require and row["poster_status"] != "ok":
        return "no poster"
    if "overview" in require and not (row["overview"] or "").strip():
        return "no overview"
    return None


def _line_of_film(row: dict[str, Any], text: str) -> dict[str, Any]:
    return {
        "tmdb_id": row["tmdb_id"],
        "title": row["title"] or "",
        "genre_ids": [genre for genre in row["genre_ids"] if genre in INDEX_OF_ID],
        "release_date": row["release_date"] or "",
        "text": film_text(row, text),
        "poster": row["poster_sha256"] if row["poster_status"] == "ok" else None,
    }


def _samples(catalogue: AnyPath, schema: Schema, recipe: Recipe) -> Iterator[Row]:
    longest = min(LONGEST_KEY, LONGEST_NAME - 1 - max(len(field.extension) for field in schema.fields))
    of_kind = {kind: [field.name for field in schema.fields if field.kind == kind] for kind in ("text", "numbers")}
    for row in read_samples(catalogue, schema):
        try:
            member_key(row["id"], longest)
        except ValueError as error:
            raise ValueError(f"{catalogue}: {error}") from None
        has = {field.name for field in schema.fields if has_field(row, field)}
        lacking = [name for name in recipe.require if name not in has]
        reason = f"no {lacking[0]}" if lacking else None if has else "none of the fields"
        text, numbers = " ".join(row[name] or "" for name in of_kind["text"]), {n: row[n] for n in of_kind["numbers"]}
        line = partial(_line_of_sample, row, schema)
        yield Row(number_of_id(row["id"]), number_of_id(row["split_by"]), reason, text, numbers, line)


def has_field(row: dict[str, Any], field: Field) -> bool:
    """Whether a row of the catalogue has a field: a text that is not blank, one number, an image that was taken."""
    if field.kind == "image":
        return bool(row[f"{field.name}:status"] == "ok")
    if field.kind == "numbers":
        return not all(map(math.isnan, row[field.name]))
    return bool((row[field.name] or "").strip())


def _line_of_sample(row: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """(With the checksums of images, so that a shard is packed anew if one changes.)"""
    values: dict[str, Any] = {}
    for field in schema.fields:
        value = row[f"{field.name}:sha256"] if field.kind == "image" else row[field.name]
        values[field.name] = value if has_field(row, field) else None
    return {"id": row["id"], "labels": row["labels"] or [], "fields": values}
