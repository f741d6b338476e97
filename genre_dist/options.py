"""What the console verbs of all rooms share."""

from argparse import ArgumentParser, _SubParsersAction
from typing import TypeAlias

Verbs: TypeAlias = "_SubParsersAction[ArgumentParser]"
"""Where a room adds its verbs: a parser each, with `set_defaults(run=...)`."""


def names(text: str) -> tuple[str, ...]:
    """A comma-separated option as its names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
