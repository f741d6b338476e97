"""Options that console verbs share."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

Verbs: TypeAlias = "_SubParsersAction[ArgumentParser]"
"""The parsers to which a package adds its verbs, each with `set_defaults(run=...)`."""


def add_verb(
    verbs: Verbs, name: str, run: Callable[[Namespace], int | None], help: str, about: str | None = None
) -> ArgumentParser:
    """Add a verb and its function to the console command."""
    verb = verbs.add_parser(name, help=help, description=about)
    verb.set_defaults(run=run)
    return verb


def add_run(verb: ArgumentParser) -> None:
    """Add the arguments of a verb that reads a run."""
    verb.add_argument("folder", metavar="RUN", type=Path)
    verb.add_argument(
        "--trust_code", action="store_true", help="run code that the config.yaml of a run made elsewhere names"
    )


def add_split(verb: ArgumentParser, default: str) -> None:
    verb.add_argument("--split", choices=["train", "val", "test"], default=default)


def names(text: str) -> tuple[str, ...]:
    """The names of a comma-separated option."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def pairs(option: str, given: Iterable[str], example: str) -> dict[str, str]:
    """The pairs NAME=VALUE of an option, by name. Raises ValueError for what is no pair."""
    named = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{option} takes pairs such as {example}, not `{pair}`")
        named[name] = value
    return named


def columns(given: Iterable[str]) -> dict[str, str]:
    """The option --columns: column of the catalogue -> column of the table. Raises ValueError for what is no pair."""
    return pairs("--columns", given, "overview=plot")
