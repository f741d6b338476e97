"""Tables of films from outside: Parquet, CSV or JSON lines, and their columns."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from genre_dist.catalogue.cells import GENRE_OF_TEXT, items_of, text_of, whole_number
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.parquet import open_parquet, stream_rows
from genre_dist.catalogue.poster_search import poster_key
from genre_dist.printable import printable

TEXT_COLUMNS = ("imdb_id", "title", "original_language", "overview", "poster_path")
MAPPABLE = ("tmdb_id", "genre_ids", "genres", "release_date", "popularity", "adult", *TEXT_COLUMNS)
JSON_LINES = (".jsonl", ".ndjson", ".json-lines")
# The csv module refuses cells above 128 KB, but some public tables have them (cast lists). Without any limit, a quote
# that is never closed would read the rest of the file into memory.
LARGEST_CELL_CHARACTERS = 16 << 20
LARGEST_LINE_BYTES = 64 << 20
MOST_COLUMNS = 10_000
FETCH_AGAIN = "fetch it again"


class Films(NamedTuple):
    """The films of a table: two small entries a film, whatever the size of its rows."""

    ids: set[int]
    of_key: dict[str, int]
    """A poster's key -> the film it belongs to."""

    def first_rows(self, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The first row of every film; this consumes `ids`."""
        for film, cells in rows:
            if film in self.ids:
                self.ids.remove(film)
                yield film, cells


class FilmTable(NamedTuple):
    """A table and the mapping of its columns."""

    path: Path
    source: dict[str, str]
    """The catalogue's column name -> the table's, for columns that the table has; 'key' names posters."""

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Id and cells, by the catalogue's names, of every row. Raises ValueError naming a row without an id."""
        for number, row in enumerate(rows_of(self.path, self.source), start=1):
            cells = {name: row.get(column) for name, column in self.source.items()}
            yield film_id(cells["tmdb_id"], self.path, number), cells

    def known(self, rows: Iterable[tuple[int, dict[str, Any]]], left_out: LeftOut) -> Films:
        """The films of all `rows`, and the keys of their posters.

        The first row of a film counts. Films that name the same poster get none: it could be the wrong one.
        """
        ids: set[int] = set()
        of_key: dict[str, int] = {}
        shared: dict[str, int] = {}
        by_id = self.source["key"] == self.source["tmdb_id"]
        shares = f"films that name their poster as another film does (column {self.source['key']}), without a poster"
        for film, cells in rows:
            if film in ids:
                left_out.add("rows with an id that was there before, left out", film)
                continue
            ids.add(film)
            key = str(film) if by_id else poster_key(text_of(cells["key"]))
            if key in of_key:
                left_out.add(shares, f"film {film} ({key})")
                shared[key] = of_key[key]
            elif key:
                of_key[key] = film
        for key, film in shared.items():
            left_out.add(shares, f"film {film} ({key})")
            del of_key[key]
        return Films(ids, of_key)


def open_table(path: Path, columns: Mapping[str, str], poster_column: str, needed: Sequence[str]) -> FilmTable:
    """Map a table's columns; `columns` maps the catalogue's names to the table's, the table must have those `needed`.

    Raises ValueError, listing the table's columns, if it lacks one that is named or needed.
    """
    has = columns_of(path)
    listed = printable(", ".join(name[:40] for name in has[:40]))
    for column, table_column in columns.items():
        if column not in MAPPABLE:
            raise ValueError(f"--columns: {column!r} is no column of a catalogue; there are {', '.join(MAPPABLE)}")
        if table_column not in has:
            raise ValueError(f"--columns: {path} has no column {table_column!r} for {column}; it has {listed}")
    source = {name: columns.get(name, name) for name in MAPPABLE if columns.get(name, name) in has}
    genres = source.pop("genres", None)
    if genres and ("genres" in columns or "genre_ids" not in source):
        source["genre_ids"] = genres
    for name in needed:
        if name not in source:
            raise ValueError(
                f"{path} has no column {name!r}; it has {listed}. Say which of them it is with --columns {name}=COLUMN"
            )
    source["key"] = columns.get(poster_column, source.get(poster_column, poster_column))
    if source["key"] not in has:
        raise ValueError(f"--poster_key: {path} has no column {source['key']!r}; it has {listed}")
    return FilmTable(path, source)


def columns_of(table: Path) -> list[str]:
    """The names of the columns; of JSON lines those of all rows, as rows may leave out columns without a value."""
    if table.suffix.lower() == ".parquet":
        with open_parquet(table, FETCH_AGAIN) as file:
            return _unique(file.schema_arrow.names, table)
    names: dict[str, None] = {}
    for row in rows_of(table, {}):
        names |= dict.fromkeys(row)
        if len(names) > MOST_COLUMNS:
            raise ValueError(
                f"{table} has more than {MOST_COLUMNS:,} columns; give a table with a film or sample in each row"
            )
        if table.suffix.lower() == ".csv":
            break
    if not names:
        raise ValueError(f"{table} has no rows; give a table with a film or sample in each row")
    return list(names)


def _unique(names: list[str], table: Path) -> list[str]:
    """The names, checked. Raises ValueError for a repeated name, which is ambiguous."""
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"{table} has two columns {twice[0][:40]!r}; rename or delete one of them")
    return names


def rows_of(table: Path, source: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows, a batch in memory at a time; of Parquet only the columns of `source`. ValueError for a damaged file."""
    suffix = table.suffix.lower()
    if suffix == ".parquet":
        names = sorted(set(source.values()))
        return stream_rows(open_parquet(table, FETCH_AGAIN), table, names, FETCH_AGAIN)
    if suffix == ".csv":
        return _csv_rows(table)
    if suffix in JSON_LINES:
        return _json_rows(table)
    raise ValueError(f"{table}: a table must end in .parquet, .csv or {', '.join(JSON_LINES)}")


def _csv_rows(table: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LARGEST_CELL_CHARACTERS)
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="")  # cells beyond the heading
        try:
            reader.fieldnames = _unique([name.strip() for name in reader.fieldnames or ()], table)
            yield from reader
        except csv.Error as error:
            raise ValueError(f"{table}, line {reader.line_num + 1}: {error}; is a quote left open above?") from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{table}, after line {reader.line_num}: not UTF-8 ({error.reason}); convert it"
            ) from error


def _json_rows(table: Path) -> Iterator[dict[str, Any]]:
    with table.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGEST_LINE_BYTES), b""), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{table}, line {number}: not JSON ({error}); each line must be one object") from error
            if not isinstance(row, dict):
                raise ValueError(f"{table}, line {number}: not an object; each line must be one object")
            yield row


def film_id(value: Any, table: Path, number: int) -> int:
    """A cell as TMDB id. Raises ValueError, with table and row number, if it is no whole number above 0."""
    text = whole_number(text_of(value))
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) == 0:
        quoted = repr(value) if len(repr(value)) <= 80 else f"{value!r:.80}..."
        raise ValueError(f"{table}, row {number}: {quoted} is no TMDB id (a whole number above 0); mend or delete it")
    return int(text)


def release_date(value: Any) -> str:
    """A cell as 'YYYY-MM-DD' or 'YYYY'; '' for any other form, which would be ambiguous."""
    text = value.isoformat()[:10] if isinstance(value, date) else whole_number(text_of(value))
    if re.fullmatch("[0-9]{4}", text):
        return text
    try:
        return date.fromisoformat(text[:10]).isoformat() if re.match("[0-9]{4}-", text) else ""
    except ValueError:
        return ""


def number_of(value: Any) -> float | None:
    """A cell as number; None if it is no number that a catalogue can hold (32 bits)."""
    try:
        number = float(text_of(value))
    except ValueError:
        return None
    return number if abs(number) < 3e38 else None  # false for NaN too


def film_row(film: int, cells: Mapping[str, Any], unknown: Counter[str]) -> dict[str, Any]:
    """A row of the catalogue from a table's cells or the API's answer, without the columns of its poster and time.

    The API's lists of films have no imdb_id: it stays empty. Unknown genres are counted in `unknown` and dropped.
    """
    return {
        "tmdb_id": film,
        **{name: text_of(cells.get(name)) for name in TEXT_COLUMNS},
        "genre_ids": genre_ids(cells.get("genre_ids", cells.get("genres")), unknown),
        "release_date": release_date(cells.get("release_date")),
        "popularity": number_of(cells.get("popularity")),
        "adult": whole_number(text_of(cells.get("adult"))).lower() in ("true", "1"),
    }


def genre_ids(cell: Any, unknown: Counter[str]) -> list[int]:
    """The cell's known genres as TMDB ids, each once, in its order; the others are counted in `unknown`."""
    ids: dict[int, None] = {}
    for item in items_of(cell):
        keys = [item.get("id"), item.get("name")] if isinstance(item, dict) else [item]
        names = [text for text in (whole_number(text_of(key)) for key in keys) if text]
        known = [GENRE_OF_TEXT[text.lower()] for text in names if text.lower() in GENRE_OF_TEXT]
        if known:
            ids[known[0]] = None
        elif names:
            unknown[names[-1][:60]] += 1
    return list(ids)
