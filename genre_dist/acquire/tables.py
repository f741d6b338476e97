"""Tables of films as people have them: Parquet, CSV or JSON lines, their columns, and the forms their cells take."""

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genre_dist.acquire.catalogue import ROWS_PER_BATCH
from genre_dist.genres import GENRES, ID_OF_NAME

TEXT_COLUMNS = ("imdb_id", "title", "original_language", "overview", "poster_path")
MAPPABLE = ("tmdb_id", "genre_ids", "genres", "release_date", "popularity", "adult", *TEXT_COLUMNS)
JSON_LINES = (".jsonl", ".ndjson", ".json-lines")
# The csv module refuses cells above 128 KB, and some public tables have them (cast lists). With no limit at all, one
# quote that is never closed would read the rest of the file into memory.
LARGEST_CELL_CHARACTERS = 16 << 20
GENRE_OF_TEXT = {str(genre.id): genre.id for genre in GENRES} | ID_OF_NAME


def source_columns(table: Path, columns: Mapping[str, str], poster_key: str) -> dict[str, str]:
    """Our column name -> the table's, for the columns that the table has; 'key' is the one that names posters.

    Raises ValueError, with the columns there are, if one that `columns` or `poster_key` names or that a catalogue
    needs is not among them.
    """
    has = _columns_of(table)
    for ours, theirs in columns.items():
        if ours not in MAPPABLE:
            raise ValueError(f"--columns: {ours!r} is no column of a catalogue; there are {', '.join(MAPPABLE)}")
        if theirs not in has:
            raise ValueError(f"--columns: {table} has no column {theirs!r} for {ours}; it has {', '.join(has)}")
    source = {name: columns.get(name, name) for name in MAPPABLE if columns.get(name, name) in has}
    genres = source.pop("genres", None)
    if genres and ("genres" in columns or "genre_ids" not in source):
        source["genre_ids"] = genres
    for name in ("tmdb_id", "genre_ids"):
        if name not in source:
            raise ValueError(
                f"{table} has no column {name!r}; it has {', '.join(has)}. "
                f"Say which of them it is with --columns {name}=COLUMN"
            )
    source["key"] = columns.get(poster_key, poster_key)
    if source["key"] not in has:
        raise ValueError(f"--poster_key: {table} has no column {source['key']!r}; it has {', '.join(has)}")
    return source


def _columns_of(table: Path) -> list[str]:
    if table.suffix.lower() == ".parquet":
        with _open_parquet(table) as file:
            return list(file.schema_arrow.names)
    first = next(table_rows(table, {}), None)
    if first is None:
        raise ValueError(f"{table} has no rows; give a table with a film in each row")
    return list(first)


def table_rows(table: Path, source: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows, a batch in memory at a time; of Parquet only the columns in `source`. ValueError for a damaged file."""
    suffix = table.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(table, sorted(set(source.values())))
    if suffix == ".csv":
        return _csv_rows(table)
    if suffix in JSON_LINES:
        return _json_rows(table)
    raise ValueError(f"{table}: a table must end in .parquet, .csv or {', '.join(JSON_LINES)}")


def _open_parquet(table: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(table)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{table} cannot be read as Parquet ({error}); fetch it again") from error


def _parquet_rows(table: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    with _open_parquet(table) as file:
        try:
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=names):
                yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{table} is damaged ({error}); fetch it again") from error


def _csv_rows(table: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LARGEST_CELL_CHARACTERS)
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="")  # cells beyond the heading
        try:
            yield from reader
        except csv.Error as error:
            raise ValueError(f"{table}, line {reader.line_num + 1}: {error}; is a quote left open above?") from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{table}, after line {reader.line_num}: not UTF-8 ({error.reason}); convert it"
            ) from error


def _json_rows(table: Path) -> Iterator[dict[str, Any]]:
    with table.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{table}, line {number}: not JSON ({error}); each line must be one object") from error
            if not isinstance(row, dict):
                raise ValueError(f"{table}, line {number}: not an object; each line must be one object")
            yield row


def text_of(value: Any) -> str:
    """A cell as text without surrounding blanks; '' where it is missing."""
    if value is None or value != value:  # NaN is how pandas writes a missing cell
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip().encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, Parquet not


def film_id(value: Any, table: Path, number: int) -> int:
    """A cell as TMDB id. ValueError, with the table and the row's number, if it is no whole number above 0."""
    text = re.sub(r"\.0+$", "", text_of(value))
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) == 0:
        raise ValueError(f"{table}, row {number}: {value!r} is no TMDB id (a whole number above 0); mend or delete it")
    return int(text)


def release_date(value: Any) -> str:
    """A cell as 'YYYY-MM-DD' or 'YYYY'; '' for any other form, which could only be guessed at."""
    text = value.isoformat()[:10] if isinstance(value, date) else text_of(value)
    if re.fullmatch("[0-9]{4}", text):
        return text
    try:
        return date.fromisoformat(text[:10]).isoformat() if re.match("[0-9]{4}-", text) else ""
    except ValueError:
        return ""


def number_of(value: Any) -> float | None:
    """A cell as number; None where it is none."""
    try:
        return float(text_of(value))
    except ValueError:
        return None


def genre_ids(cell: Any, unknown: Counter[str]) -> list[int]:
    """The cell's known genres as TMDB ids, each once, in its order; the others are counted in `unknown`."""
    ids: dict[int, None] = {}
    for item in _genre_items(cell):
        keys = [item.get("id"), item.get("name")] if isinstance(item, dict) else [item]
        names = [text for text in map(text_of, keys) if text]
        known = [GENRE_OF_TEXT[text.lower()] for text in names if text.lower() in GENRE_OF_TEXT]
        if known:
            ids[known[0]] = None
        elif names:
            unknown[names[-1][:60]] += 1
    return list(ids)


def _genre_items(cell: Any) -> Sequence[Any]:
    if isinstance(cell, list | tuple):
        return cell
    text = text_of(cell)
    if not text.startswith(("[", "{")):
        return re.split(r"[|,;]", text)
    for parse in (json.loads, ast.literal_eval):  # "[{'id': 18}]" is what pandas wrote into the best known tables
        try:
            value = parse(text)
            return value if isinstance(value, list | tuple) else [value]
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return [text]  # unreadable: counted among the unknown genres, where the user sees it
