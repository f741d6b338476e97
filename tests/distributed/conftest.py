"""Fixtures of the tests with several ranks."""

from pathlib import Path

import kills
import pytest


@pytest.fixture(scope="session")
def quiet(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short run on two ranks to which nothing happened. Read only."""
    folder = tmp_path_factory.mktemp("quiet")
    codes = kills.live(2, kills.short_run(sample_shards, folder / "run"), folder)
    assert codes == [0, 0], kills.said(folder)
    return folder / "run"
