"""Fixtures that several tests share: a small catalogue of invented films, and its shards."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from once import made_once

from genre_dist.catalogue.sample_films import make_sample
from genre_dist.packing.pack import pack

FOLDERS = {"chaos": "slow", "distributed": "ranks", "slurm": "slurm"}
"""What marks every test of a folder; `browser` and `slow` are also given to files and tests."""
LONGEST = (
    "test_attacks",
    "slurm",
    "test_study",
    "test_strategies_agree",
    "distributed",
    "test_benchmarks",
    "end_to_end",
)
"""Files and folders that workers begin with."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """At the end of the log, which may be all that is kept of it: what went wrong, each cause once and in whole."""
    causes: Counter[str] = Counter()
    for report in terminalreporter.getreports("failed") + terminalreporter.getreports("error"):
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else report.longreprtext
        causes[f"{report.nodeid.partition('[')[0]}: {message.strip().partition(chr(10))[0]}"] += 1
    for cause, times in causes.items():
        terminalreporter.write_line(f"{times} x {cause}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if name := FOLDERS.get(item.path.parent.name):
            item.add_marker(name)
    if hasattr(config, "workerinput"):  # of pytest-xdist: what takes longest first, so that its workers end together
        longest = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: longest.get(item.path.stem, longest.get(item.path.parent.name, len(longest))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n` a file's tests, which share fixtures, are one worker's; those of SLURM too, which share its daemons."""
    if config.getoption("dist") != "load":  # somebody asks for another way
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "slurm" if "slurm" in Path(file).parts else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def state_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a user's tests trust is noted apart from what the user trusts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def sample_catalogue(request: pytest.FixtureRequest) -> Path:
    """A catalogue of 240 films, some without a poster or an overview. Read only."""
    return made_once(request, "sample-catalogue", lambda folder: make_sample(240, seed=3, out=folder, size=(60, 90)))


@pytest.fixture(scope="session")
def sample_shards(sample_catalogue: Path, request: pytest.FixtureRequest) -> Path:
    """The films of the sample that have both media, packed 50 to a shard, posters of 72 x 72. Read only."""

    def make(folder: Path) -> None:
        pack(sample_catalogue, folder, size=72, shard_size=50, workers=1)

    return made_once(request, "sample-shards", make)


@pytest.fixture
def shards_copy(sample_shards: Path, tmp_path: Path) -> Path:
    """The sample's shards once more, for a test that damages them."""
    return Path(shutil.copytree(sample_shards, tmp_path / "shards"))
