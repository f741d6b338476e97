"""benchmarks/gpu.py runs anywhere, keeps what it measured, says what failed, and needs nothing a GPU machine lacks."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from once import tell

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
LACKING = ("deepspeed", "jsonargparse", "rich", "simplejpeg", "tensorboard", "wandb", "webdataset")
MARK = "GENRE_DIST_BENCHMARK_TEST"

sys.path.insert(0, str(SCRIPT.parent))
from gpu_sections import SECTIONS  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """What `--prepare` makes, in small; made with all packages. Read only."""
    tell(pytestconfig, "benchmarks: the GPU benchmark is prepared and its every section run in small: about a minute")
    folder = tmp_path_factory.mktemp("gpu") / "prepared"
    done = run("--prepare", folder, "--quick")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which, in every process of it, importing what a GPU machine may lack fails."""
    folder = tmp_path_factory.mktemp("bare")
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({LACKING!r}))\n"  # importing one that is None fails
    (folder / "sitecustomize.py").write_text(blocked)
    return {"PYTHONPATH": str(folder)}


def run(*options: Any, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=290, env=os.environ | (environment or {})
    )


def rows_of(file: Path) -> dict[str, dict[str, Any]]:
    """The rows by their claims; a NaN is no JSON."""
    return {row["claim"]: row for row in json.loads(file.read_text(), parse_constant=pytest.fail)}


def test_all_sections_run_on_a_cpu_without_the_packages_a_gpu_machine_may_lack(
    tmp_path: Path, prepared: Path, bare: dict[str, str]
) -> None:
    file = tmp_path / "rows.json"
    done = run("--quick", "--json", file, "--shards", prepared, environment=bare)
    assert done.returncode == 0, done.stderr
    rows = rows_of(file)
    assert not [claim for claim in rows if "failed" in claim or "skipped" in claim], done.stdout
    for section in SECTIONS:
        assert any(claim.startswith(f"{section.name}: ") for claim in rows), section.name
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    assert all(here in row["machine"] for row in rows.values())
    assert not [row for row in rows.values() if row["goal"] and row["holds"] is False and "losses" in row["claim"]]
    assert json.loads(gzip.decompress((tmp_path / "rows.trace.json.gz").read_bytes()))["traceEvents"]
    if not torch.cuda.is_available():
        assert rows["JPEG decoding on the GPU"]["value"] is None
    assert "| claim | value |" in done.stdout


def test_a_section_that_is_not_there_is_named_with_those_that_are() -> None:
    done = run("--sections", "heads,tails")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "tails" in done.stderr
    assert all(section.name in done.stderr for section in SECTIONS)


def test_what_does_not_fit_the_time_is_skipped_and_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert run("--quick", "--minutes", 0, "--json", file).returncode == 0
    rows = rows_of(file)
    assert len(rows) == len(SECTIONS)
    assert all("skipped" in claim or row["unit"] == "needs CUDA" for claim, row in rows.items())


def test_only_named_sections_run_and_one_that_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = run("--quick", "--sections", "heads,decoding", "--shards", tmp_path / "nowhere", "--json", file)
    assert done.returncode == 0, done.stderr
    failure, *others = rows_of(file)
    assert failure.startswith("decoding: failed: ")
    assert "nowhere" in failure
    assert [claim for claim in others if claim.startswith("heads batched")]
    assert all(claim.startswith(("decoding", "heads")) for claim in others)


def test_when_the_process_that_measures_dies_the_next_section_has_a_fresh_one(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    file = tmp_path / "rows.json"
    running = started("--quick", "--sections", "recompute,heads", "--json", file)
    wait_for(file.exists)  # with the first row; others are to follow
    (worker,) = [pid for pid in marked_processes() if "--worker" in command_of(pid)]
    os.kill(worker, signal.SIGKILL)
    assert running.wait(60) == 0
    claims = list(rows_of(file))
    assert [claim for claim in claims if claim.startswith("recompute: failed: its process ended with code -9")]
    assert [claim for claim in claims if claim.startswith("heads batched")]


def test_killed_in_mid_run_it_leaves_the_rows_of_what_has_ended_and_no_process(
    tmp_path: Path, prepared: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    file = tmp_path / "rows.json"
    running = started("--quick", "--sections", "bf16,feeding", "--json", file, "--shards", prepared)
    wait_for(lambda: file.exists() and any(claim.startswith("loader alone") for claim in rows_of(file)))
    assert len(marked_processes()) >= 3  # with a worker and its readers
    running.kill()
    running.wait()
    rows = rows_of(file)
    assert "bf16: the whole section" in rows
    assert "feeding: the whole section" not in rows
    wait_for(lambda: not marked_processes())


def test_the_work_of_an_operation_is_shared_by_time_among_the_kernels_it_starts() -> None:
    from gpu_trace import Counter, longest_kernels
    from torch.autograd.profiler_util import FunctionEvent

    with Counter() as counter:
        torch.zeros(4, 8) @ torch.zeros(8, 2)
    product = FunctionEvent(1, "aten::mm", 0, 0, 9, input_shapes=[[4, 8], [8, 2]])
    inner = FunctionEvent(2, "aten::copy_", 0, 1, 2, input_shapes=[[4, 8], [4, 8]])  # not counted by itself
    unknown = FunctionEvent(3, "aten::unknown", 0, 10, 11, input_shapes=[])
    inner.set_cpu_parent(product)
    product.append_kernel("gemm", 0, 30)
    inner.append_kernel("copy", 0, 10)
    unknown.append_kernel("mystery", 0, 50)
    kernels = longest_kernels([product, inner, unknown], counter, on_gpu=True)
    assert list(kernels) == ["mystery", "gemm", "copy"]
    assert kernels["mystery"].flops == 0
    assert kernels["gemm"].flops == 2 * 4 * 8 * 2 * 0.75
    assert kernels["copy"].bytes == 4 * (4 * 8 + 8 * 2 + 4 * 2) * 0.25
    assert kernels["copy"].operations == {"aten::mm"}


def test_all_sections_fit_ten_minutes() -> None:
    assert sum(section.seconds for section in SECTIONS) <= 570


def test_the_prepared_folder_is_small_and_counts_what_takes_long(prepared: Path) -> None:
    assert (prepared / "shards" / "manifest.json").is_file()
    known = json.loads((prepared / "known.json").read_text())
    assert all(number > 0 for number in known.values())
    assert {"flops", "peak"} <= {name.split(": ")[1].split(",")[0] for name in known}


def test_the_films_that_are_prepared_take_less_than_40_mb(tmp_path: Path) -> None:
    from gpu_prepare import FILMS, pack_films

    sample = 60
    pack_films(tmp_path, sample, quick=False)
    size = sum(file.stat().st_size for file in (tmp_path / "shards").iterdir())
    assert size * FILMS / sample < 40e6


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the benchmark in the background, its processes marked."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), *map(str, options)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, text=True, env=os.environ | {MARK: str(os.getpid())}
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def marked_processes() -> list[int]:
    """Processes that come from one that `started` has started, ended ones left out."""
    mark, found = f"{MARK}={os.getpid()}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never came to be"
        time.sleep(0.05)
