"""The rooms of the project: what may import what, and that a file's name says which file is meant."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import genre_dist

PACKAGE = Path(genre_dist.__file__).parent
FLOORS = (
    *(
        "config",
        "stream",
        "catalogue",
        "tmdb",
        "packing",
        "tars",
        "models",
        "parallel",
        "metrics",
        "planner",
        "training",
    ),
    *("training", "doctor", "inference", "baselines", "fusion", "pages", "export", "explore", "compare", "explain"),
    "study",
)
"""Rooms from the ground up: each may import those before it. What lies beside the rooms is below them all."""
ENTRIES = ("cli.py", "train.py")
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


@cache
def imported(path: Path) -> frozenset[Path]:
    """The project's files that a file imports, at its top or in a function, but for those only types need."""

    def nodes(node: ast.AST) -> Iterator[ast.ImportFrom]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom):
                yield child
            elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
                yield from nodes(child)

    found = set()
    for node in nodes(ast.parse(path.read_text())):
        module = (node.module or "").split(".")
        if module[0] == "genre_dist":
            base = PACKAGE.joinpath(*module[1:])
            for name in node.names:
                for file in (base / f"{name.name}.py", base / name.name / "__init__.py", base.with_suffix(".py")):
                    if file.is_file():
                        found.add(file)
                        break
                else:
                    found.add(base / "__init__.py")
    return frozenset(found)


def test_every_room_has_its_floor() -> None:
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} == set(FLOORS)


@pytest.mark.parametrize("path", [file for file in FILES if room(file) not in ENTRIES], ids=lambda p: p.stem)
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    floor = FLOORS.index(room(path)) if room(path) in FLOORS else -1
    rooms = {room(file) for file in imported(path)} - {room(path)}
    assert [name for name in rooms if name in FLOORS and FLOORS.index(name) >= floor] == []
    assert not rooms & set(ENTRIES)


def test_no_file_imports_itself_by_way_of_others() -> None:
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(str(file.relative_to(PACKAGE)) for file in (*above, path))
        if path not in done:
            for other in sorted(imported(path)):
                visit(other, (*above, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


def test_no_two_files_have_one_name() -> None:
    """But for what each room has, and the sections of the configuration, which are called as what they are for."""
    names = Counter(
        path.name for path in FILES if room(path) != "config" and path.name not in ("__init__.py", "verbs.py")
    )
    assert [name for name, count in names.items() if count > 1] == []
