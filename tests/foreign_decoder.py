"""Decoders in a module of its own, which reader processes can import without the tests' libraries."""

import json
from typing import Any


def length_of(members: dict[str, Any]) -> tuple[str, int]:
    if members["__key__"] == "000010007":
        raise ValueError("this one is no good")
    return members["__key__"], len(members["jpg"])


def json_of(members: dict[str, Any]) -> Any:
    return json.loads(members["json"])["caption"]
