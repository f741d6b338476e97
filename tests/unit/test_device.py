"""Which GPU a rank takes, what is wrong with it, and what memory it may count on, with torch.cuda's answers made up."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cuda import CUDA_13, GB, FakeCuda, no_kernels

from genre_dist.config import Config, DataConfig, RunConfig
from genre_dist.parallel import gpu as devices
from genre_dist.parallel.gpu import RankGpu, exchange_gpus, has_kernels, is_shared, ranks_on, take_device
from genre_dist.parallel.world import World, _backend, start_world
from genre_dist.planner.memory import CONTEXT_BYTES
from genre_dist.training import backoff
from genre_dist.training.experiment import agreed_precision, choose_precision
from genre_dist.training.host_bound import host_bound
from genre_dist.training.ranks import Meter, memory_to_plan
from genre_dist.training.trainer import Trainer

GPU = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return FakeCuda(monkeypatch)


# --- one GPU for several ranks, or one each


def card_of(cuda: FakeCuda, uuid: str, bus: int) -> RankGpu:
    cuda.uuid, cuda.bus = uuid, bus
    return take_device(GPU)


@pytest.mark.parametrize(
    ("uuids", "buses", "backend"),
    [
        (("ab-1", "cd-2"), (1, 2), "cpu:gloo,cuda:nccl"),  # each process sees one GPU, number 0, and another one
        (("ab-1", "ab-1"), (1, 1), "gloo"),
        (("ab-1", "cd-2"), (1, 1), "gloo"),  # slices with UUIDs of their own on one GPU
    ],
)
def test_the_ranks_take_nccl_unless_two_of_them_are_really_on_one_gpu(
    uuids: tuple[str, str], buses: tuple[int, int], backend: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # more ranks than each of them sees GPUs
    cards = [card_of(cuda, uuid, bus) for uuid, bus in zip(uuids, buses, strict=True)]
    assert _backend(cards) == backend


def test_gpus_at_the_same_address_of_two_machines_are_two(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "BOOT_ID", Path("/there/is/none"))
    cards = []
    for host, uuid in (("node1", "ab-1"), ("node2", "cd-2")):
        monkeypatch.setattr(devices.socket, "gethostname", lambda host=host: host)
        cards.append(card_of(cuda, uuid, 1))
    assert not is_shared(cards)


@pytest.mark.parametrize("uuids", [("ab-1", "ab-1"), ("ab-1", "cd-2")])
def test_ranks_on_two_slices_of_a_gpu_have_all_of_their_memory_each_whichever_uuid_torch_tells(
    uuids: tuple[str, str], cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.name = "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    cards = []
    for name, uuid in zip(("MIG-11", "MIG-22"), uuids, strict=True):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        cards.append(card_of(cuda, uuid, 1))
    assert is_shared(cards)
    assert ranks_on(cards[0], cards) == 1


def test_where_torch_tells_no_address_the_uuid_decides(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=cuda.uuid, name="A"))
    assert is_shared([card_of(cuda, "ab-1", 1), card_of(cuda, "ab-1", 2)])
    assert not is_shared([card_of(cuda, "ab-1", 1), card_of(cuda, "cd-2", 1)])


@pytest.mark.parametrize(("local_rank", "visible", "index"), [(0, 1, 0), (3, 1, 0), (3, 8, 3), (5, 4, 1)])
def test_a_rank_takes_the_gpu_of_its_number_as_far_as_there_are_any(
    local_rank: int, visible: int, index: int, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.count = visible
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert devices.choose_device() == torch.device("cuda", index)


def exchanged(cards: list[RankGpu]) -> list[list[RankGpu] | str]:
    """What each rank learns, or the error it gets."""
    store, told = dist.HashStore(), list[Any]([None] * len(cards))

    def meet(rank: int) -> None:
        try:
            told[rank] = exchange_gpus(store, cards[rank], rank, len(cards))
        except ValueError as error:
            told[rank] = str(error)

    threads = [threading.Thread(target=meet, args=(rank,), daemon=True) for rank in range(len(cards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert None not in told, "a rank hangs"
    return told


def test_every_rank_learns_the_gpus_of_all() -> None:
    cards = [RankGpu("node1 1", "a"), RankGpu("node1 2", "b"), RankGpu("node2 1", "c")]
    assert exchanged(cards) == [cards] * 3


def test_a_gpu_that_cannot_be_used_is_told_by_all_ranks_and_nobody_waits_for_it() -> None:
    cards = [RankGpu("node1 1", "a"), RankGpu(problem="node1: cuda:1 is broken")]
    assert exchanged(cards) == ["rank 1 on node1: cuda:1 is broken"] * 2


def test_a_rank_without_a_gpu_among_ranks_that_have_one_is_named() -> None:
    told = exchanged([RankGpu(), RankGpu("node1 1", "a")])
    assert told[0] == [RankGpu()]  # as on CPUs, where nothing is waited for
    assert "rank 0 of 2 has no GPU" in told[1]
    assert "genre-dist doctor" in told[1]


def test_ranks_on_cpus_do_not_ask_for_each_others_gpus() -> None:
    assert exchange_gpus(dist.HashStore(), RankGpu(), 0, 2) == [RankGpu()]
    assert _backend([RankGpu()]) == "gloo"


# --- a GPU that cannot be used


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (CUDA_13, (9, 0), True),
        (CUDA_13, (8, 9), True),  # sm_86 runs on 8.9
        (CUDA_13, (7, 0), False),  # V100
        (["sm_80"], (7, 5), False),
        (["sm_86"], (8, 0), False),  # a newer minor version does not run on an older one
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),  # PTX is compiled on the spot
        (["compute_90"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["compute_90a"], (10, 0), False),
        (["compute_100f"], (12, 0), False),
        (["sm_90", "sm_120"], (12, 1), True),
    ],
)
def test_which_gpus_a_build_has_kernels_for(built: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert has_kernels(built, capability) == runs


def test_a_gpu_that_computes_has_no_problem(cuda: FakeCuda) -> None:
    assert take_device(GPU).problem == ""
    assert start_world() == World(0, 1, GPU)


@pytest.mark.parametrize(
    ("name", "capability", "way_out"),
    [("Tesla V100-SXM2-32GB", (7, 0), "an older CUDA"), ("NVIDIA X100", (13, 0), "a newer torch")],
)
def test_a_gpu_without_kernels_in_this_torch_is_refused_before_anything_else_in_one_line(
    name: str, capability: tuple[int, int], way_out: str, cuda: FakeCuda
) -> None:
    cuda.name, cuda.capability, cuda.failure = name, capability, no_kernels()
    with pytest.raises(ValueError, match=name) as failure:
        start_world()
    line = str(failure.value)
    assert f"sm_{capability[0]}{capability[1]}" in line
    assert "sm_75, sm_80" in line
    assert torch.__version__ in line
    assert way_out in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "failure",
    [
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore"),
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.cuda.DeferredCudaCallError("CUDA call failed lazily at initialization with error: x\n\nmore"),
    ],
)
def test_a_gpu_that_is_taken_full_or_broken_says_what_cuda_says_in_one_line(failure: Exception, cuda: FakeCuda) -> None:
    cuda.failure = failure
    with pytest.raises(ValueError, match="nvidia-smi") as told:
        start_world()
    assert str(failure).partition("\n")[0] in str(told.value)
    assert "\n" not in str(told.value)


# --- bf16


def with_precision(precision: str) -> Config:
    return Config(train=replace(Config().train, precision=precision))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "asked", "taken"),
    [((9, 0), "auto", "bf16"), ((9, 0), "bf16", "bf16"), ((7, 5), "auto", "fp32"), ((7, 5), "fp32", "fp32")],
)
def test_the_precision_on_a_gpu(capability: tuple[int, int], asked: str, taken: str, cuda: FakeCuda) -> None:
    cuda.capability = capability
    assert choose_precision(with_precision(asked), GPU) == taken


def test_bf16_on_a_gpu_without_it_is_refused_with_the_ways_out(cuda: FakeCuda) -> None:
    cuda.name, cuda.capability = "Tesla T4", (7, 5)
    with pytest.raises(ValueError, match=r"bf16: a Tesla T4 has no bf16.*fp32.*auto"):
        choose_precision(with_precision("bf16"), GPU)
    assert choose_precision(with_precision("bf16"), torch.device("cpu")) == "bf16"


@pytest.mark.parametrize(("another_rank", "taken"), [(False, "bf16"), (True, "fp32")])
def test_ranks_on_gpus_of_several_kinds_compute_alike(another_rank: bool, taken: str, cuda: FakeCuda) -> None:
    world: Any = SimpleNamespace(device=GPU, any=lambda own: own or another_rank)
    assert agreed_precision(with_precision("auto"), world) == taken


def test_a_run_that_was_trained_in_bf16_is_evaluated_in_fp32_on_a_gpu_without_it(cuda: FakeCuda) -> None:
    cuda.capability = (7, 5)
    assert choose_precision(with_precision("bf16"), GPU, trained_elsewhere=True) == "fp32"


# --- the load of the GPU


class NVMLError(Exception):
    """As in pynvml: of no narrower kind."""


@pytest.mark.parametrize("failure", [NVMLError("Not Supported"), ModuleNotFoundError("pynvml"), RuntimeError("driver")])
def test_a_gpu_that_does_not_tell_its_load_leaves_the_figure_out(
    failure: Exception, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: torch.device) -> int:
        raise failure

    meter = Meter(GPU)
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert set(meter.read()) == {"rank_cpu_percent", "rank_memory_bytes", "rank_gpu_memory_bytes"}
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 93)
    assert meter.read()["rank_gpu_percent"] == 93


# --- memory


@pytest.mark.parametrize(("ranks", "counted"), [(1, 40 * GB + 3), (2, 20 * GB + 3), (4, 10 * GB + 3)])
def test_ranks_on_one_gpu_divide_what_is_free_and_keep_what_they_hold(ranks: int, counted: int, cuda: FakeCuda) -> None:
    cuda.free, cuda.reserved = 40 * GB, 3
    assert devices.free_memory(GPU, ranks) == counted


def test_the_plan_of_a_gpu_that_others_use_is_for_what_is_free_and_counts_the_context_once(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def planned(config: Config, card: int, ranks: int, precision: str) -> int:
        asked.append(card)
        return 1

    monkeypatch.setattr("genre_dist.planner.options.planned_micro_batch", planned)
    cuda.free = 2 * GB
    backoff.planned_config(Config(), World(0, 1, GPU))
    assert asked == [2 * GB + CONTEXT_BYTES]  # the planner subtracts a context, which is there already
    told = capsys.readouterr().out
    assert "2.0 GB of 80.0 GB are free, other processes hold the rest" in told
    assert "CUDA_VISIBLE_DEVICES" in told


@pytest.mark.parametrize(("asked", "splits"), [("auto", True), (16, False)])
def test_planned_micro_batches_may_be_halved_and_those_asked_for_may_not(
    asked: Any, splits: bool, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class SetUpError(Exception): ...

    def set_up(config: Config, world: World, splits: bool) -> None:
        raise SetUpError(config.data.micro_batch, splits)

    monkeypatch.setattr("genre_dist.planner.options.planned_micro_batch", lambda *_: 16)
    monkeypatch.setattr("genre_dist.training.trainer.set_up", set_up)
    config = Config(data=DataConfig(global_batch=32, micro_batch=asked), run=RunConfig(dir=str(tmp_path)))
    with pytest.raises(SetUpError) as raised, Trainer(config, World(0, 1, GPU)):
        pass
    assert raised.value.args == (16, splits)


def test_a_model_that_cannot_be_planned_is_trained_all_the_same_and_the_reason_is_printed(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise ValueError("the model cannot be planned: no meta form")

    monkeypatch.setattr("genre_dist.planner.options.planned_micro_batch", refuse)
    assert backoff.planned_config(Config(), World(0, 1, GPU)) == Config()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("micro-batches of 32 to begin with")
    assert line.endswith("the model cannot be planned: no meta form")


def test_a_gpu_that_is_free_but_for_the_context_is_no_news(cuda: FakeCuda, capsys: pytest.CaptureFixture[str]) -> None:
    cuda.free = cuda.total - CONTEXT_BYTES
    assert memory_to_plan(World(0, 1, GPU)) == cuda.total
    assert capsys.readouterr().out == ""


def test_ranks_that_share_a_gpu_plan_for_their_parts(cuda: FakeCuda) -> None:
    assert memory_to_plan(World(0, 2, GPU, sharing=2)) == cuda.free // 2 + CONTEXT_BYTES


# --- too few samples for a GPU


RESNET152 = {"operations": 2466, "flops": 74.4e9, "peak": 989e12}  # on an H100 in bf16


def test_eight_samples_of_a_resnet152_leave_an_h100_idle_most_of_the_time() -> None:
    told = host_bound(8, **RESNET152)
    assert told is not None
    assert "busy for about 5 ms" in told
    assert "takes the CPU about 86 ms" in told
    assert "93 samples/s" in told
    assert "below 150 samples" in told


@pytest.mark.parametrize(
    ("samples", "changed", "idles"),
    [
        (149, {}, True),
        (150, {}, False),
        (256, {}, False),
        (10, {"peak": 65e12}, False),  # a T4 is slower than its CPU even then
        (8, {"peak": 0.0}, False),  # unknown: nothing is claimed
    ],
)
def test_from_which_micro_batch_on_a_gpu_is_busy(samples: int, changed: dict[str, float], idles: bool) -> None:
    assert (host_bound(samples, **RESNET152 | changed) is not None) == idles
