"""The chaos suite's options, and what all attacks share: films, shards, a trained run, a server, and references."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acquire_server import KEY, serve
from helpers import Processes, options
from once import tell
from stages import Reference, Stage, all_stages, undisturbed

SEED = 203
"""Its first turn has every kind of fault, but no hang, which takes a minute to be noticed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos", "attacks on every stage (tests/chaos)")
    group.addoption("--chaos_minutes", type=float, default=0.0, help="attack for so long; default: each stage once")
    group.addoption("--chaos_seed", type=int, default=SEED, help="which attacks")
    group.addoption("--chaos_only", type=int, action="append", metavar="N", help="only attack N of the seed, again")
    group.addoption("--chaos_log", type=Path, metavar="FILE", help="a line an attack is added here")


@pytest.fixture(scope="module")
def stages(
    sample_catalogue: Path,
    sample_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[list[Stage]]:
    """Every stage, on the sample's films and on a server of others."""
    tell(pytestconfig, "chaos: every stage is run undisturbed, then attacked, 2 to 4 starts each: about five minutes")
    folder = tmp_path_factory.mktemp("stages")
    arguments = ("--data.global_batch", 32, "--train.steps", 2, "--parallel.timeout_seconds", 60)
    with Processes(folder / "log") as processes:
        processes.fork("genre_dist.train", options(sample_shards, folder / "run", *arguments))
        processes.succeed(200)
    with serve(films=240, poster_share=0.8, undated_share=0.1) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMDB_API_KEY", KEY)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # two ranks, whatever the machine has
        patch.setenv("DS_ACCELERATOR", "cpu")
        server.control(set={"delay": 0.01})
        yield all_stages(sample_catalogue, sample_shards, folder / "run", server, folder / "study.yaml")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Stage], Reference]:
    """What a stage leaves that nothing happens to; made when it is first asked for."""
    made: dict[str, Reference] = {}

    def of(stage: Stage) -> Reference:
        if stage.name not in made:
            made[stage.name] = undisturbed(stage, tmp_path_factory.mktemp(f"undisturbed-{stage.name}"))
        return made[stage.name]

    return of


@pytest.fixture
def asked_to_end() -> Iterator[None]:
    """SIGTERM ends the suite as Ctrl-C does: with its summary, and without a process or a disk left."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)
