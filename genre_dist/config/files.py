"""Reading and writing the configuration: YAML files, dotted overrides, and errors that name the nearest right key."""

import dataclasses
import os
import re
import typing
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from genre_dist.atomic import atomic_file
from genre_dist.config import Config
from genre_dist.config.rules import near
from genre_dist.config.run import is_of_a_run
from genre_dist.config.trust import refuse_foreign_code
from genre_dist.config.yaml_mapping import read_mapping
from genre_dist.printable import printable

DEFAULT_FILE = "configs/end_to_end.yaml"
_SWITCHES = ("config", "dry_run", "trust_code", "help", "print_config")
"""Options that are no settings."""


class Parsed(NamedTuple):
    """A resolved configuration and the switch that is no part of it."""

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
    parser.add_argument(
        "--trust_code", action="store_true", help="run code that the config.yaml of a run made elsewhere names"
    )
    return parser


def parse_config(argv: Sequence[str], prog: str = "python -m genre_dist.train") -> Parsed:
    """Parse command-line options into a checked `Config`.

    A run's folder is the one of its config.yaml, whatever `run.dir` in it says: runs are moved and copied. Raises
    ValueError with one line that names the wrong key (and the nearest right one) or the wrong value; also, without
    --trust_code, for code that only the config.yaml of a run made elsewhere names.
    """
    values = _parse(argv, prog)
    config = _config_of(values)
    named = {value for _, value in _given(argv, "--model.poster.arch")}
    for at, file in ((at, Path(file)) for at, file in _given(argv, "--config") if is_of_a_run(Path(file))):
        recorded, arch = load_config(file), config.model.poster.arch
        if arch == recorded.model.poster.arch and arch not in named and not values.trust_code:
            refuse_foreign_code(config, file)
        moved = Path(recorded.run.dir).resolve() != file.parent.resolve()
        if moved and recorded.run.dir == config.run.dir and not _given(argv[at:], "--run.dir"):
            if config.run.overwrite:
                raise ValueError(f"{file} is of the run in its folder: name what to overwrite with --run.dir")
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(file.parent)))
    return Parsed(config, bool(values.dry_run))


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML that `--config` reads back, unless the file has it already."""
    written = config.to_yaml().encode()
    if not path.is_file() or path.read_bytes() != written:
        with atomic_file(path) as file:
            file.write(written)


def load_config(path: Path) -> Config:
    """Read a configuration written by `save_config` or by hand; none of the code that it names is run.

    Raises ValueError as `parse_config` does, naming the file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such configuration file")
    try:
        return _config_of(_parse(["--config", str(path)]))
    except ValueError as error:
        message = printable(error)
        raise ValueError(message if printable(path) in message else f"{path}: {message}") from None


def _parse(argv: Sequence[str], prog: str = "python -m genre_dist.train") -> Namespace:
    for _, file in _given(argv, "--config"):
        _check_file(Path(file))
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            _check_key(word[2:].partition("=")[0])
    parser = config_parser(prog)
    try:
        namespace = parser.parse_args(list(argv))
        _check_sections(namespace)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parser.instantiate(namespace)
    except ArgumentError as error:
        # the parser's message, with its "Parser key" in this project's words
        message = re.sub(r"Parser key \"([\w.]+)\":", r"configuration key `\1`:", str(error))
        raise ValueError(printable(message).strip()[:1000]) from None


def _config_of(values: Namespace) -> Config:
    return Config(**{section.name: getattr(values, section.name) for section in dataclasses.fields(Config)})


def _given(argv: Sequence[str], option: str) -> list[tuple[int, str]]:
    """The position and value of each occurrence of an option among the arguments."""
    following = [*argv[1:], ""]
    return [
        (at, word.removeprefix(f"{option}=") if "=" in word else following[at])
        for at, word in enumerate(argv)
        if word == option or word.startswith(f"{option}=")
    ]


def _check_file(path: Path) -> None:
    """Raise ValueError, naming the file, if it is too large, too deep or not text, or has a key unknown to the schema.

    A section must be a mapping: the parser would take a string for the path of another file and read that.
    """
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such configuration file")
    if not path.is_file():
        return  # a pipe is read once, by the parser
    content = read_mapping(path)
    try:
        _check_keys(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_keys(content: dict[Any, Any], prefix: str = "") -> None:
    """Raise ValueError for a key that the schema does not have, and for a section that is no mapping."""
    for key, value in content.items():
        _check_key(name := f"{prefix}{key}")
        if _options().get(name):
            if not isinstance(value, dict):
                raise ValueError(f"configuration key `{name}` is a section of keys, found: {printable(value)[:80]}")
            _check_keys(value, f"{name}.")


def _check_key(key: str) -> None:
    """Raise ValueError, naming the nearest right one, for a key that is no setting, section or switch."""
    options = _options()
    # the parser checks keys below a setting, such as those of a mapping
    of_setting = any(options.get(key[:at]) is False for at, letter in enumerate(key) if letter == ".")
    if key not in options and key not in _SWITCHES and not of_setting:
        close = nearest_option(key)
        hint = f"did you mean `{close}`?" if close else "--help lists the keys"
        raise ValueError(f"unknown configuration key `{printable(key)[:200]}`; {hint}")


@cache
def _options(cls: type = Config, prefix: str = "") -> dict[str, bool]:
    """Every dotted key of the schema, and whether it is a section."""
    options = {}
    for name, kind in typing.get_type_hints(cls).items():
        options[prefix + name] = dataclasses.is_dataclass(kind)
        if dataclasses.is_dataclass(kind):
            options |= _options(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return options


def nearest_option(key: str) -> str | None:
    """The key of the schema nearest to a wrong one, or None if none is near.

    A key that only has wrong sections is nearer than any misspelling.
    """
    names, leaf = list(_options()), key.rsplit(".", 1)[-1]
    same_leaf = [name for name in names if name.rsplit(".", 1)[-1] == leaf]
    leaves = {name.rsplit(".", 1)[-1]: name for name in names}
    return near(key, same_leaf, 0.0) or near(key, names, 0.5) or leaves.get(near(leaf, leaves, 0.6) or "")


def _check_sections(namespace: Any, cls: Any = Config, prefix: str = "") -> None:
    """Raise ValueError if a section is no mapping, or a required value is null."""
    for name, kind in typing.get_type_hints(cls).items():
        value = getattr(namespace, name)
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Namespace):
                raise ValueError(f"configuration key `{prefix}{name}` is a section of keys, found: {value}")
            _check_sections(value, kind, f"{prefix}{name}.")
        elif value is None and type(None) not in typing.get_args(kind):
            raise ValueError(f"configuration key `{prefix}{name}` must have a value, found: null")
