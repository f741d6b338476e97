"""`genre-dist doctor` says what is wrong and how to mend it, for people and for programs."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fake_cuda import GB, FakeCuda, no_kernels
from helpers import Processes
from torchvision.models import ResNet152_Weights

from genre_dist.cli import main
from genre_dist.doctor import doctor, machine, software
from genre_dist.doctor import gpus as cards
from genre_dist.doctor.finding import Finding


class Usage(NamedTuple):
    total: int
    free: int


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(machine.urllib.request, "urlopen", refuse)


def examine(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", "--json", *arguments])
    told = json.loads(capsys.readouterr().out)
    assert told["fit"] == (code == 0)
    return code, {row["name"]: row for row in told["findings"]}


def test_a_machine_that_is_fit(sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = examine(["--shards", str(sample_shards), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 0, found
    wanted = "Python torch CUDA NCCL DeepSpeed decoders disk,shared memory,open files,network SLURM shards weights"
    assert set(found) >= {name for part in wanted.split(",") for name in ([part] if part in found else part.split())}
    assert "films" in found["shards"]["told"]
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_comes_with_the_way_to_mend_it_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--shards", str(tmp_path / "nothing"), "--runs", str(tmp_path)]
    code, found = examine(arguments, capsys)
    assert code == 1
    assert found["shards"]["status"] == "wrong"
    assert "genre-dist pack" in found["shards"]["told"]
    assert main(["doctor", *arguments]) == 1
    assert "1 to mend" in capsys.readouterr().out


def test_other_peoples_text_is_shown_as_it_is(
    shards_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = shards_copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"split": "train"', '"split": "[/]\\u001b[31m"', 1))
    assert main(["doctor", "--shards", str(shards_copy), "--runs", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "[/]" in told
    assert "\x1b[31m" not in told


@pytest.mark.parametrize(("free", "status"), [(1, "wrong"), (10, "note"), (100, "ok")])
def test_free_disk(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(0, free * machine.GIB))
    assert machine.check_disk(tmp_path / "runs" / "later").status == status


@pytest.mark.parametrize(("ranks", "status"), [(1, "note"), (2, "wrong"), (8, "wrong")])
def test_the_shared_memory_docker_gives_by_default_is_too_little_for_several_gpus(
    ranks: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(64 * 2**20, 64 * 2**20))
    finding = machine.check_shm(tmp_path, ranks)
    assert finding.status == status
    assert "--shm-size" in finding.fix


@pytest.mark.parametrize(
    ("soft", "hard", "status", "told"),
    [
        (256, 512, "wrong", "at most 512 (now 256; readers raise it)"),
        (1024, 1024, "ok", "at most 1,024"),
        (1024, 524_288, "ok", "at most 524,288 (now 1,024; readers raise it)"),
        (1024, -1, "ok", "without limit (now 1,024; readers raise it)"),
        (-1, -1, "ok", "without limit"),
    ],
)
def test_how_many_files_may_be_open_is_told_as_training_will_have_it(
    soft: int, hard: int, status: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (soft, hard))
    finding = machine.check_open_files()
    assert (finding.status, finding.told) == (status, told)
    assert bool(finding.fix) == (status == "wrong")


def test_a_chosen_network_that_does_not_exist() -> None:
    finding = machine.check_network(2, {"NCCL_SOCKET_IFNAME": "ib7"})
    assert finding.status == "wrong"
    assert "lo 127.0.0.1" in finding.told
    assert machine.check_network(2, {"GLOO_SOCKET_IFNAME": "lo"}).status == "ok"
    assert machine.check_network(2, {"NCCL_SOCKET_IFNAME": "^docker", "GLOO_SOCKET_IFNAME": "lo"}).status == "ok"


@pytest.mark.parametrize(("nodes", "status"), [(1, "note"), (2, "wrong")])
def test_a_machine_whose_name_leads_to_itself_cannot_be_met_by_others(
    nodes: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.socket, "gethostbyname", lambda name: "127.0.1.1")
    finding = machine.check_network(nodes, {})
    assert finding.status == status
    assert "GLOO_SOCKET_IFNAME" in finding.fix


@pytest.mark.parametrize(
    ("variables", "status", "named"),
    [
        ({}, "ok", "not in a job"),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS_PER_NODE": "1"}, "ok", "4 GPUs"),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS_PER_NODE": "4"}, "wrong", "4 tasks"),
        ({"SLURM_TASKS_PER_NODE": "1(x2)"}, "note", "0 GPUs"),
    ],
)
def test_a_slurm_job(variables: dict[str, str], status: str, named: str) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"} | variables if variables else {}
    finding = machine.check_slurm(job)
    assert finding.status == status
    assert named in finding.told


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    monkeypatch.setattr(software.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(software.torch.version, "cuda", None)
    finding = software.check_cuda()
    assert finding.status == "wrong"
    assert "without CUDA" in finding.fix


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cards.shutil, "which", lambda name: "/bin/gcc" if name in ("gcc", "/bin/gcc") else None)
    return FakeCuda(monkeypatch)


def looked_at() -> dict[str, Finding]:
    return {finding.name: finding for finding in cards.check_gpus()}


def test_every_gpu_is_looked_at(cuda: FakeCuda) -> None:
    cuda.count = 2
    found = looked_at()
    assert list(found) == ["GPU 0", "GPU 1", "NVML", "C compiler"]
    assert found["GPU 1"].status == "ok"
    assert found["GPU 1"].told == "NVIDIA H100 80GB HBM3, sm_90, kernels run, 79.0 of 80.0 GiB free"
    assert cuda.current == torch.device("cuda", 0)  # again, for what comes after


def test_without_a_gpu_nothing_is_said_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cards.check_gpus() == []


def test_a_gpu_without_kernels_in_this_torch_is_wrong_and_the_others_are_looked_at_all_the_same(cuda: FakeCuda) -> None:
    cuda.count, cuda.capability, cuda.failure, cuda.broken = 2, (7, 0), no_kernels(), {0}
    found = looked_at()
    assert found["GPU 0"].status == "wrong"
    assert "sm_70" in found["GPU 0"].told
    assert "install torch built for an older CUDA" in found["GPU 0"].told
    assert found["GPU 1"].status == "note"


def test_a_rank_whose_gpu_cannot_be_used_gets_the_table_and_exit_code_1(
    cuda: FakeCuda, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda.capability, cuda.failure = (7, 0), no_kernels()
    code, found = examine(["--shards", str(sample_shards), "--runs", str(tmp_path)], capsys)
    assert code == 1
    assert found["GPU 0"]["status"] == "wrong"
    assert found["shards"]["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "capability", "free", "named"),
    [
        ("Tesla T4", (7, 5), 79, "no bf16"),
        ("NVIDIA A100 MIG 3g.20gb", (8, 0), 79, "gloo"),
        ("NVIDIA L4", (8, 9), 60, "other processes"),
    ],
)
def test_what_is_worth_knowing_of_a_gpu(
    name: str, capability: tuple[int, int], free: int, named: str, cuda: FakeCuda
) -> None:
    cuda.name, cuda.capability, cuda.free = name, capability, free * GB
    finding = looked_at()["GPU 0"]
    assert finding.status == "note"
    assert named in finding.fix


class NVMLError(Exception):
    """As in pynvml: of no narrower kind."""


@pytest.mark.parametrize(
    ("answer", "status", "named"),
    [
        (lambda: 12, "ok", "12 %"),
        (lambda: (_ for _ in ()).throw(NVMLError("Not Supported")), "note", "Not Supported"),
        (lambda: (_ for _ in ()).throw(ModuleNotFoundError("pynvml")), "note", "nvidia-ml-py"),
    ],
)
def test_whether_the_load_of_a_gpu_can_be_read(
    answer: Any, status: str, named: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards.torch.cuda, "utilization", answer)
    finding = looked_at()["NVML"]
    assert finding.status == status
    assert named in finding.told + finding.fix


@pytest.mark.parametrize(
    ("here", "cc", "status", "named"),
    [
        ({"gcc"}, None, "ok", "/bin/gcc"),
        ({"clang"}, None, "ok", "/bin/clang"),
        (set(), None, "note", "name one in CC"),
        ({"gcc"}, "icc", "note", "CC=icc"),
        ({"gcc", "icc"}, "icc", "ok", "icc"),
    ],
)
def test_a_compiler_for_torch_compile(
    here: set[str], cc: str | None, status: str, named: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cards.shutil, "which", lambda name: f"/bin/{Path(name).name}" if Path(name).name in here else None
    )
    monkeypatch.setattr(cards.Path, "is_file", lambda path: True)  # Python.h
    if cc is not None:
        monkeypatch.setenv("CC", cc)
    finding = looked_at()["C compiler"]
    assert finding.status == status
    assert named in finding.told + finding.fix


def test_a_compiler_without_pythons_headers_is_of_no_use(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards.sysconfig, "get_paths", lambda: {"include": "/there/is/none"})
    finding = looked_at()["C compiler"]
    assert finding.status == "note"
    assert "python3-dev" in finding.fix


def test_weights_that_are_neither_here_nor_in_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    finding = machine.check_weights()
    assert finding.status == "note"
    assert "model.poster.weights" in finding.fix


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "PYTHON", (sys.version_info[0] + 1, 0))
    assert software.check_python().status == "wrong"


@pytest.mark.slow
def test_under_torchrun_the_ranks_measure_their_all_reduce(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "hub" / "checkpoints" / ResNet152_Weights.DEFAULT.url.rpartition("/")[2]
    weights.parent.mkdir(parents=True)
    weights.touch()  # no look at the network
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with Processes(tmp_path / "log") as ranks:
        arguments = ["doctor", "--json", "--shards", str(sample_shards), "--runs", str(tmp_path)]
        ranks.start_torchrun(2, arguments, module="genre_dist.cli")
        ranks.succeed()
        output = ranks.output()
    told = json.loads(output[output.index("{") : output.rindex("}") + 1])
    (row,) = [row for row in told["findings"] if row["name"] == "all-reduce"]
    assert "2 ranks" in row["told"]
    assert doctor.MEGABYTES == 64
    assert sum(row["name"] == "Python" for row in told["findings"]) == 1
