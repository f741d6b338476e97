"""Validation of untrusted JSON files against a type before their content is used.

A type is a dataclass, a NamedTuple or a TypedDict, its fields annotated with the kinds below. Values are not converted:
a number in quotes is no number. Unknown fields are refused.
"""

import re
from functools import cache
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Le, Predicate

from genre_dist.printable import one_line
from genre_dist.storage import AnyPath, file_size, read_bytes

LARGEST_BYTES = 64 << 20
"""Larger JSON files are refused before they are read."""
LONGEST_VALUE, LONGEST_LINE = 80, 300
_PLAIN = {
    "Predicate 'is_file_name' failed": "not the name of a file in or below its folder",
    "Predicate 'is_sha256' failed": "not a SHA-256 (64 hex digits)",
}

Kind = TypeVar("Kind")


def is_file_name(text: str) -> bool:
    """Whether this names a file in or below a folder: relative, without `..`, in printable characters."""
    path = PurePosixPath(text)
    return (
        0 < len(text) <= 1024
        and text.isprintable()
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in text
        and "://" not in text
        and str(path) == text
        and text != "."
    )


def is_address(text: str) -> bool:
    """Whether a listing accepts this address of a tar: a path or URL, relative to the listing or not, without `..`."""
    return 0 < len(text) <= 4096 and text.isprintable() and ".." not in PurePosixPath(text).parts


def is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


FileName = Annotated[str, Predicate(is_file_name)]
"""A file in a folder or below it."""
Address = Annotated[str, Predicate(is_address)]
"""A file anywhere."""
Sha256 = Annotated[str, Predicate(is_sha256)]
Count = Annotated[int, Ge(0), Le(2**62)]


def parse_json(kind: type[Kind], written: bytes, path: AnyPath | str, remedy: str) -> Kind:
    """JSON as a value of a type. Raises ValueError in one line with the file, the key, the problem and the remedy."""
    from pydantic import ValidationError  # importing takes 0.1 s, which modules that need only types save

    try:
        return _validator(kind).validate_json(written, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        key = one_line(".".join(map(str, problem["loc"])), LONGEST_LINE)
        is_plain = problem["type"] in ("missing", "json_invalid", "value_error")
        value = "" if is_plain else f", found {one_line(repr(problem['input']), LONGEST_VALUE)}"
        message = one_line(_PLAIN.get(problem["msg"], problem["msg"].removeprefix("Value error, ")), LONGEST_LINE)
        raise ValueError(f"{path}: {key + ': ' if key else ''}{message}{value}; {remedy}") from None


def read_json(kind: type[Kind], path: AnyPath, remedy: str) -> Kind:
    """A JSON file as a value of a type. Raises ValueError as `parse_json` does, OSError if it cannot be read."""
    if (size := file_size(path)) > LARGEST_BYTES:
        raise ValueError(f"{path}: {size:,} bytes, more than such a file ever has; {remedy}")
    return parse_json(kind, read_bytes(path, LARGEST_BYTES), path, remedy)


@cache  # for files that are read line by line
def _validator(kind: Any) -> Any:
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    return SchemaValidator(_failing_fast(TypeAdapter(kind).core_schema))


def _failing_fast(schema: Any) -> Any:
    """A schema that stops at the first wrong item of a list: pydantic keeps some 500 bytes per wrong item."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_failing_fast, schema))
    if not isinstance(schema, dict):
        return schema
    changed = {key: _failing_fast(value) for key, value in schema.items()}
    return changed | {"fail_fast": True} if schema.get("type") in ("list", "tuple", "set", "dict") else changed
