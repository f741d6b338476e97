"""Fixtures of the tests of fetch: a server on loopback that behaves like TMDB, and the verb sent there."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acquire_server import KEY, Handle, serve

from genre_dist import storage
from genre_dist.cli import main
from genre_dist.tmdb import web


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Handle]:
    with serve(films=240, poster_share=0.8, undated_share=0.1) as server:
        yield server


@pytest.fixture
def server(shared_server: Handle) -> Handle:
    """A well-behaved server of 240 films, its record empty."""
    shared_server.control(set={"rules": [], "max_pages": 500, "swap_once": False}, forget=True)
    return shared_server


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and waits that a test can afford."""
    monkeypatch.setenv("TMDB_API_KEY", KEY)
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", (2.0, 0.5))


@pytest.fixture
def fetch(server: Handle, hurried: None, tmp_path: Path) -> Callable[..., int]:
    """Run the verb in this process on tmp_path/catalogue; its exit code."""

    def run(*options: str, out: str = "catalogue") -> int:
        return main([*server.arguments(tmp_path / out), "--years", "1990-2009", "--rate", "0", *options])

    return run
