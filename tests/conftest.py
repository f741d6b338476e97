"""Fixtures that several tests share: a small catalogue of invented films, and its shards."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from genre_dist.acquire.sample import make_sample
from genre_dist.prepare.pack import pack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """At the end of the log, which may be all that is kept of it: what went wrong, each cause once and in whole."""
    causes: Counter[str] = Counter()
    for report in terminalreporter.getreports("failed") + terminalreporter.getreports("error"):
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else report.longreprtext
        causes[f"{report.nodeid.partition('[')[0]}: {message.strip().partition(chr(10))[0]}"] += 1
    for cause, times in causes.items():
        terminalreporter.write_line(f"{times} x {cause}")


@pytest.fixture(scope="session", autouse=True)
def state_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a user's tests trust is noted apart from what the user trusts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def sample_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of 240 films, some without a poster or an overview. Read only."""
    folder = tmp_path_factory.mktemp("catalogue") / "sample"
    make_sample(240, seed=3, out=folder, size=(60, 90))
    return folder


@pytest.fixture(scope="session")
def sample_shards(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The films of the sample that have both media, packed 50 to a shard, posters of 72 x 72. Read only."""
    folder = tmp_path_factory.mktemp("shards") / "sample"
    pack(sample_catalogue, folder, size=72, shard_size=50, workers=1)
    return folder


@pytest.fixture
def shards_copy(sample_shards: Path, tmp_path: Path) -> Path:
    """The sample's shards once more, for a test that damages them."""
    return Path(shutil.copytree(sample_shards, tmp_path / "shards"))
