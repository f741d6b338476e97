"""Reading a schema that is declared in YAML, and classes from a file with one a line."""

import json
from pathlib import Path
from typing import Any

from genre_dist.config.rules import known
from genre_dist.config.yaml_mapping import read_mapping
from genre_dist.genres import GENRE_NAMES
from genre_dist.printable import printable
from genre_dist.schema import Field, Labels, Schema
from genre_dist.validation import parse_json

KEYS = ("id", "split_by", "labels", "fields", "sample", "label")
LABEL_KEYS = ("column", "classes", "choose")
FIELD_KEYS = ("kind", "columns", "column", "member")
AUTO, OF_TMDB = "auto", "tmdb"
"""Classes that are no file: those that the table has, and TMDB's genres."""
MOST_CLASSES = 10_000
LARGEST_BYTES = 4 << 20
_REMEDY = "put names that YAML reads as numbers or truth values in quotes"


def load_schema(path: Path) -> Schema:
    """Read a schema; a file of classes lies beside it. Classes that are `auto` are left empty.

    Raises ValueError naming the file and the wrong key (and the nearest right one) or value.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file with a schema")
    try:
        content = _section(read_mapping(path), KEYS, "")
        for key in ("id", "labels", "fields"):
            if content.get(key) is None:
                raise ValueError(f"the key `{key}` is missing")
        fields = tuple(_field(name, value) for name, value in _section(content["fields"], None, "fields").items())
        labels = _labels(_section(content["labels"], LABEL_KEYS, "labels."), path.parent)
        rest = {key: content[key] for key in ("sample", "label") if content.get(key) is not None}
        rest |= {"id": content["id"], "split_by": content.get("split_by") or content["id"]}
        for key, value in rest.items():
            if not isinstance(value, str):
                raise ValueError(f"{key}: not a text, found {printable(value)[:80]}; {_REMEDY}")
        return Schema(**rest, labels=labels, fields=fields)
    except ValueError as error:
        message = printable(error)
        raise ValueError(message if message.startswith(printable(path)) else f"{path}: {message}") from None


def _section(value: Any, keys: tuple[str, ...] | None, prefix: str) -> dict[str, Any]:
    """A mapping without keys other than these. Raises ValueError otherwise."""
    if not isinstance(value, dict):
        raise ValueError(f"`{prefix.rstrip('.')}` is a section of keys, found: {printable(value)[:80]}")
    for key in value:
        if keys is not None:
            known(key, keys, prefix)
        elif not isinstance(key, str):
            raise ValueError(f"{prefix}: the name {printable(key)[:80]} is no text; {_REMEDY}")
    return value


def _field(name: str, value: Any) -> Field:
    given = dict(_section(value, FIELD_KEYS, f"fields.{name[:60]}."))
    if "column" in given:
        if "columns" in given:
            raise ValueError(f"fields.{name[:60]} has both `column` and `columns`; give one of them")
        given["columns"] = [given.pop("column")]
    return _typed(Field, {"name": name} | given, f"fields.{name[:60]}")


def _labels(given: dict[str, Any], folder: Path) -> Labels:
    classes = given.get("classes", AUTO)
    if isinstance(classes, str):
        classes = classes_named(classes, folder, "labels.classes")
    elif not classes:
        raise ValueError(f"labels.classes: a list of classes, a file, {AUTO} or {OF_TMDB}, found {classes!r}")
    return _typed(Labels, given | {"classes": classes}, "labels")


def _typed(kind: Any, given: dict[str, Any], where: str) -> Any:
    return parse_json(kind, json.dumps(given, default=str).encode(errors="replace"), where, _REMEDY)


def classes_named(name: str, folder: Path, option: str) -> tuple[str, ...]:
    """The classes of `auto` (none yet), `tmdb`, or of a file in or relative to a folder.

    Raises ValueError, naming the option, if there is no such file, else as `load_classes` does.
    """
    if name == AUTO:
        return ()
    if name == OF_TMDB:
        return GENRE_NAMES
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{option}: {path} is no file; give {AUTO}, {OF_TMDB}, or a file with one class a line")
    return load_classes(path)


def load_classes(path: Path) -> tuple[str, ...]:
    """The classes in a UTF-8 file with one a line. Raises ValueError naming a blank, doubled or unprintable line."""
    if (size := path.stat().st_size) > LARGEST_BYTES:
        raise ValueError(f"{path}: {size:,} bytes, more than a list of classes ever has")
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); convert it") from None
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            raise ValueError(f"{path}, line {number}: blank; each line is a class, delete this one")
        if not name.isprintable():
            raise ValueError(f"{path}, line {number}: {name[:60]!r} has characters that cannot be shown")
        if name in line_of:
            raise ValueError(f"{path}, line {number}: {name[:60]!r} is there already, in line {line_of[name]}")
        line_of[name] = number
    if not 0 < len(line_of) <= MOST_CLASSES:
        raise ValueError(f"{path}: {len(line_of):,} classes; a file of classes has 2 to {MOST_CLASSES:,}")
    return tuple(line_of)
