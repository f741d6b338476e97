"""The files that tools look for beside the code say the same as pyproject.toml."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from helpers import TESTS

ROOT = TESTS.parent


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_citation_has_the_packages_name_version_and_licence(pyproject: dict[str, Any]) -> None:
    citation, project = yaml.safe_load((ROOT / "CITATION.cff").read_text()), pyproject["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_package_announces_its_type_hints(pyproject: dict[str, Any]) -> None:
    assert "py.typed" in pyproject["tool"]["setuptools"]["package-data"]["genre_dist"]
    assert (ROOT / "genre_dist" / "py.typed").is_file()


def test_every_script_is_checked_before_a_commit() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert {"ruff-check", "ruff-format", "mypy", "shellcheck"} <= hooks.keys()
    scripts = [path.relative_to(ROOT).as_posix() for path in (ROOT / "launch").rglob("*") if path.is_file()]
    pattern = hooks["shellcheck"]["files"]
    assert [name for name in [*scripts, ".ci/run"] if not re.search(pattern, name)] == []
