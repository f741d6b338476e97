"""SECURITY.md names the reader of each kind of file and the tests that hold each promise: they are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py|tests/\w+)`", (ROOT / "SECURITY.md").read_text())))


@pytest.mark.parametrize("name", NAMED)
def test_what_security_md_names_is_there(name: str) -> None:
    found = [*ROOT.glob(name), *ROOT.glob(f"genre_dist/{name}"), *ROOT.glob(f"tests/*/{name}")]
    assert len(found) == 1, f"SECURITY.md: `{name}`"
