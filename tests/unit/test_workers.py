"""How many processes share out some work."""

import os
from pathlib import Path

import pytest

import genre_dist
from genre_dist.workers import usable_cores


def test_the_cores_that_this_process_may_use_count_not_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7})
    assert usable_cores() == 2
    assert genre_dist.__file__ is not None
    files = Path(genre_dist.__file__).parent.rglob("*.py")
    assert [file.name for file in files if "cpu_count" in file.read_text()] == []
