"""JSON files with a checksum of their content: reading detects a changed byte or an edited value."""

import hashlib
import json
from typing import Any

from genre_dist.atomic import atomic_file
from genre_dist.storage import AnyPath
from genre_dist.validation import Kind, parse_json, read_json

_SEAL = "sha256"


def write_sealed(path: AnyPath, content: dict[str, Any]) -> None:
    """Write a JSON file atomically, with the checksum of its content under `sha256`."""
    with atomic_file(path, "w") as file:
        json.dump(content | {_SEAL: _checksum(content)}, file, indent=1)


def read_sealed(kind: type[Kind], path: AnyPath, remedy: str) -> Kind:
    """A JSON file as a value of a type; older files have no checksum.

    Raises ValueError as `read_json` does, and for content that was changed after it was written.
    """
    content = read_json(dict[str, Any], path, remedy)
    seal = content.pop(_SEAL, None)
    if seal is not None and seal != _checksum(content):
        raise ValueError(f"{path}: changed since it was written, its checksum is of something else; {remedy}")
    return parse_json(kind, json.dumps(content).encode(), path, remedy)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
