"""What the console verbs of all rooms share."""

from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterable
from typing import TypeAlias

Verbs: TypeAlias = "_SubParsersAction[ArgumentParser]"
"""Where a room adds its verbs: a parser each, with `set_defaults(run=...)`."""


def names(text: str) -> tuple[str, ...]:
    """A comma-separated option as its names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def columns(pairs: Iterable[str]) -> dict[str, str]:
    """The option --columns: our names of columns and the table's. Raises ValueError for what is no pair."""
    named = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not equals:
            raise ValueError(f"--columns takes pairs such as overview=plot, not `{pair}`")
        named[ours] = theirs
    return named
