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

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from genre_dist.atomic import atomic_file
from genre_dist.config import Config
from genre_dist.printable import printable
from genre_dist.trust import refuse_foreign_code

DEFAULT_FILE = "configs/end_to_end.yaml"
MOST_BYTES, MOST_VALUES = 100_000, 10_000
"""A file of settings above these is none; one of a run has 2,000 bytes and 100 values."""
_OF_A_RUN = ("checkpoints/step-*", "metrics.jsonl", "model.json", "model.safetensors")
"""What lies beside the config.yaml of a run, at least one of them."""


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
    parser.add_argument(
        "--trust_code", action="store_true", help="run code that the config.yaml of a run made elsewhere names"
    )
    return parser


def parse_config(argv: Sequence[str], prog: str = "python -m genre_dist.train") -> Parsed:
    """Parse command-line options into a checked `Config`.

    The folder of a run is where its config.yaml lies, whatever that says: runs are moved and copied. Raises ValueError
    with one line that names the wrong key (and the nearest right one) or the wrong value, and for code that only the
    config.yaml of a run made elsewhere names, without --trust_code.
    """
    values = _parse(argv, prog)
    config = _config_of(values)
    named = {value for _, value in _given(argv, "--model.poster.arch")}
    for at, file in ((at, Path(file)) for at, file in _given(argv, "--config") if _is_of_a_run(Path(file))):
        theirs, arch = load_config(file), config.model.poster.arch
        if arch == theirs.model.poster.arch and arch not in named and not values.trust_code:
            refuse_foreign_code(config, file)
        moved = Path(theirs.run.dir).resolve() != file.parent.resolve()
        if moved and theirs.run.dir == config.run.dir and not _given(argv[at:], "--run.dir"):
            if config.run.overwrite:
                raise ValueError(f"{file} is of the run in its folder: name what to overwrite with --run.dir")
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(file.parent)))
    return Parsed(config, bool(values.dry_run))


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML that `--config` reads back, unless that is what is there."""
    written = config.to_yaml().encode()
    if not path.is_file() or path.read_bytes() != written:
        with atomic_file(path) as file:
            file.write(written)


def load_config(path: Path) -> Config:
    """Read a configuration written by `save_config` or by hand, as it is; none of its code is run.

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
    parser = config_parser(prog)
    try:
        namespace = parser.parse_args(list(argv))
        _check_sections(namespace)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parser.instantiate(namespace)
    except ArgumentError as error:
        raise ValueError(_explain(str(error), argv)) from None


def _config_of(values: Namespace) -> Config:
    return Config(**{section.name: getattr(values, section.name) for section in dataclasses.fields(Config)})


def _given(argv: Sequence[str], option: str) -> list[tuple[int, str]]:
    """Where an option stands among the arguments, with its value, each time it is given."""
    following = [*argv[1:], ""]
    return [
        (at, word.removeprefix(f"{option}=") if "=" in word else following[at])
        for at, word in enumerate(argv)
        if word == option or word.startswith(f"{option}=")
    ]


def _is_of_a_run(file: Path) -> bool:
    """Whether this is the config.yaml of a run, in its folder."""
    return file.name == "config.yaml" and any(any(file.parent.glob(name)) for name in _OF_A_RUN)


def _check_file(path: Path) -> None:
    """Raise ValueError, naming it, for a file that no parser should see: not text, endless, or too deep.

    Sections have to be written out: in place of one the parser would read any file that is named.
    """
    if not path.is_file():
        return  # the parser tells
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes, more than a file of settings ever has")
    try:
        text = path.read_bytes().decode()
        _check_size(yaml.compose(text, Loader=yaml.SafeLoader))
        told = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path} is not a YAML file of sections and keys: {printable(error)[:300]}") from None
    sections = {name for name, is_section in _options() if is_section}
    if isinstance(told, dict):
        for name, value in _named(told):
            if name in sections and not isinstance(value, dict):
                raise ValueError(
                    f"{path}: configuration key `{name}` is a section of keys, found: {printable(value)[:80]}"
                )


def _check_size(node: yaml.Node | None) -> None:
    """Raise ValueError for more values than a file of settings has; what stands for another counts as that."""
    left, seen = [node], 0
    while left:
        seen += 1
        if seen > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        inside: Any = getattr(left.pop(), "value", None)
        for item in inside if isinstance(inside, list) else ():
            left.extend(item if isinstance(item, tuple) else (item,))


def _named(told: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in told.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _named(value, f"{prefix}{key}.")


def option_names() -> Iterator[str]:
    """Every dotted key of the schema, sections included."""
    return (name for name, _ in _options())


def _options(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every dotted key of the schema, and whether it is a section."""
    types = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        is_section = dataclasses.is_dataclass(types[item.name])
        yield prefix + item.name, is_section
        if is_section:
            yield from _options(types[item.name], f"{prefix}{item.name}.")


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
    """Raise ValueError if something else stands where a section of keys belongs, or nothing where a value does."""
    for name, kind in typing.get_type_hints(cls).items():
        value = getattr(namespace, name)
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Namespace):
                raise ValueError(f"configuration key `{prefix}{name}` is a section of keys, found: {value}")
            _check_sections(value, kind, f"{prefix}{name}.")
        elif value is None and type(None) not in typing.get_args(kind):
            raise ValueError(f"configuration key `{prefix}{name}` must have a value, found: null")


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
    return printable(message).strip()[:1000]
