"""The forms of a table's cells. Import, fetch, predict and tars read them here: a cell means the same everywhere."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from genre_dist.genres import GENRES, ID_OF_NAME

GENRE_OF_TEXT = {str(genre.id): genre.id for genre in GENRES} | ID_OF_NAME


def text_of(value: Any) -> str:
    """A cell as text without surrounding blanks; '' for a missing value."""
    if value is None or value != value:  # NaN is how pandas writes a missing cell
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):  # old programs write text to Parquet as bytes
        return value.decode("utf-8", "replace").strip()
    return str(value).strip().encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, Parquet not


def whole_number(text: str) -> str:
    """`18.0` as `18`, because columns with missing values hold whole numbers as floats; other text unchanged."""
    return re.sub(r"^([0-9]+)\.0*$", r"\1", text)


def items_of(cell: Any) -> Sequence[Any]:
    """The items of a cell that is a list, or a text with one: JSON, as Python prints it, or separated by | ; or ,."""
    if isinstance(cell, list | tuple):
        return cell
    if isinstance(cell, dict):
        return [cell]
    text = text_of(cell)
    if not text.startswith(("[", "{")):
        return [item.strip() for item in re.split(r"[|,;]", text)]
    for parse in (json.loads, ast.literal_eval):  # pandas wrote "[{'id': 18}]" into the best known tables
        try:
            value = parse(text)
            return value if isinstance(value, list | tuple) else [value]
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
    return [text]  # unreadable text counts as an unknown genre, which the user sees
