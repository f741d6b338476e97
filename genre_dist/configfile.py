"""Reading and writing the configuration: YAML files, dotted overrides, and errors that name the nearest right key."""

import dataclasses
import difflib
import itertools
import re
import typing
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from genre_dist.config import Config

DEFAULT_FILE = "configs/end_to_end.yaml"


class Parsed(NamedTuple):
    """A resolved configuration and the one switch that is no part of it."""

    config: Config
    dry_run: bool


def config_parser(prog: str = "python -m genre_dist.train") -> ArgumentParser:
    """The parser of `--config FILE` and of one dotted option per field of `Config`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        allow_abbrev=False,
        description=f"Train. Without --config: the defaults below, which are those of {DEFAULT_FILE}.",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file; later options override it")
    parser.add_class_arguments(Config)
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained and at what cost, and stop")
    return parser


def parse_config(argv: Sequence[str], prog: str = "python -m genre_dist.train") -> Parsed:
    """Parse command-line options into a checked `Config`.

    Raises ValueError with one line that names the wrong key (and the nearest right one) or the wrong value.
    """
    parser = config_parser(prog)
    try:
        namespace = parser.parse_args(list(argv))
        _check_sections(namespace)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = parser.instantiate(namespace)
    except ArgumentError as error:
        raise ValueError(_explain(str(error), argv)) from None
    sections = {section.name: getattr(values, section.name) for section in dataclasses.fields(Config)}
    return Parsed(Config(**sections), bool(values.dry_run))


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML that `--config` reads back."""
    path.write_text(config.to_yaml())


def load_config(path: Path) -> Config:
    """Read a configuration written by `save_config` or by hand. Raises ValueError as `parse_config` does."""
    if not path.is_file():
        raise ValueError(f"{path}: no such configuration file")
    return parse_config(["--config", str(path)]).config


def option_names(cls: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, sections included."""
    types = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        yield prefix + item.name
        if dataclasses.is_dataclass(types[item.name]):
            yield from option_names(types[item.name], f"{prefix}{item.name}.")


def nearest_option(key: str) -> str | None:
    """The key of the schema nearest to a wrong one, or None if nothing is near.

    A key that is right but for its sections is nearer than any misspelling.
    """
    names = list(option_names())
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in names if name.rsplit(".", 1)[-1] == leaf]
    found = difflib.get_close_matches(key, same_leaf or names, n=1, cutoff=0.0 if same_leaf else 0.5)
    if not found:
        leaves = {name.rsplit(".", 1)[-1]: name for name in names}
        found = [leaves[near] for near in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    return found[0] if found else None


def _check_sections(namespace: Any, cls: Any = Config, prefix: str = "") -> None:
    """Raise ValueError if something else stands where a section of keys belongs."""
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            value = getattr(namespace, name)
            if not isinstance(value, Namespace):
                raise ValueError(f"configuration key `{prefix}{name}` is a section of keys, found: {value}")
            _check_sections(value, kind, f"{prefix}{name}.")


def _explain(message: str, argv: Sequence[str]) -> str:
    """Turn a parser's message into one line for the user."""
    key = None
    if found := re.search(r"unrecognized arguments: --([\w.]+)", message):
        key = found[1]
    elif found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        key = f"{found[1]}.{found[2]}"
    elif found := re.search(r"Option '([\w.]+)' is not accepted", message):
        key = found[1]
    if key is not None:
        near = nearest_option(key)
        hint = f"; did you mean `{near}`?" if near else "; --help lists the keys"
        return f"unknown configuration key `{key}`{hint}"
    if message.startswith(("Problems parsing config", "Unexpected config")):
        files = [after for option, after in itertools.pairwise(argv) if option == "--config"]
        message = f"{' or '.join(files) or '--config'} is not a YAML file of sections and keys: {message}"
    message = re.sub(r"Parser key \"([\w.]+)\":", r"configuration key `\1`:", message)
    return re.sub(r"\s+", " ", message).strip()
