"""Fixtures of the tests with several ranks."""

from pathlib import Path

import kills
import pytest
from once import made_once


@pytest.fixture(scope="session")
def quiet(sample_shards: Path, request: pytest.FixtureRequest) -> Path:
    """The short run on two ranks to which nothing happened. Read only."""

    def make(folder: Path) -> None:
        folder.mkdir()
        codes = kills.live(2, kills.short_run(sample_shards, folder / "run"), folder)
        assert codes == [0, 0], kills.said(folder)

    return made_once(request, "quiet", make) / "run"
