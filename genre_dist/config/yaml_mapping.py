"""A YAML file of sections and keys, measured before it is read."""

from pathlib import Path
from typing import Any

import yaml

from genre_dist.printable import printable

MOST_BYTES, MOST_VALUES = 100_000, 10_000
"""Limits for a file of settings; that of a run has 2,000 bytes and 100 values."""


def read_mapping(path: Path) -> dict[Any, Any]:
    """The content of a YAML file. Raises ValueError, naming it, if it is too large, too deep, or no mapping in text."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path}: {size:,} bytes, more than a file of settings ever has")
    try:
        text = path.read_bytes().decode()
        _check_size(yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError(f"found: {content}")
    except (ValueError, RecursionError, yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path} is not a YAML file of sections and keys: {printable(error)[:300]}") from None
    return content


def _check_size(node: yaml.Node | None) -> None:
    """Raise ValueError for more values than a file of settings has; an alias counts as the values it stands for."""
    left, seen = [node], 0
    while left:
        seen += 1
        if seen > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        inside: Any = getattr(left.pop(), "value", None)
        for item in inside if isinstance(inside, list) else ():
            left.extend(item if isinstance(item, tuple) else (item,))
