"""What would go wrong on a GPU and on no CPU, held against torch's and DeepSpeed's own code where that decides."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from torch.distributed.utils import _recursive_to

from genre_dist import train as entry
from genre_dist.config import CheckpointConfig, Config, TrainConfig
from genre_dist.config.files import parse_config
from genre_dist.parallel import zero
from genre_dist.parallel.world import World
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import FieldInput, Inputs
from genre_dist.training import checkpoint_manager as saving
from genre_dist.training import profiling
from genre_dist.training.backoff import NOTE, Backoff
from genre_dist.training.checkpoint_manager import CheckpointManager
from genre_dist.training.determinism import deterministic
from genre_dist.training.loss import loss_sum
from genre_dist.training.out_of_memory import is_out_of_memory
from genre_dist.training.profiling import Profiler
from genre_dist.training.step import StepResult, TrainStep, agree

CUDA = torch.device("cuda", 3)
CPU_WORLD, CUDA_WORLD = World(0, 1, torch.device("cpu")), World(0, 1, CUDA)


# ---- threads and devices


def test_the_savers_threads_take_the_ranks_device_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each makes a context of half a gigabyte on GPU 0."""
    log: list[tuple[str, object]] = []

    def note(what: str) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            log.append((what, arguments[0] if what == "set_device" else threading.current_thread()))
            return {}

        return noted

    monkeypatch.setattr(torch.cuda, "set_device", note("set_device"))
    monkeypatch.setattr(saving, "Staging", lambda device: SimpleNamespace(copy=note("copy"), close=lambda: None))
    monkeypatch.setattr(saving, "write_checkpoint", note("write"))
    strategy: Any = SimpleNamespace(state_dict=dict, sync_buffers=lambda: None)
    saver = CheckpointManager(tmp_path, strategy, CUDA_WORLD, CheckpointConfig(), {})
    saver.prepare()
    saver.wait()
    saver.save(1)
    saver.wait()
    saver.close()
    assert [what for what, _ in log] == ["set_device", "copy", "copy", "set_device", "write"]
    assert [told for what, told in log if what == "set_device"] == [CUDA, CUDA]
    assert log[2][1] is threading.current_thread()  # the copy of a save is taken by the loop itself


def test_deepspeed_takes_the_ranks_device_whatever_local_rank_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else number LOCAL_RANK, `invalid device ordinal` where two ranks share a GPU or each sees one."""
    engine = pytest.importorskip("deepspeed.runtime.engine")
    taken: list[int] = []
    accelerator = SimpleNamespace(set_device=taken.append, device_name=lambda number: f"cuda:{number}")
    monkeypatch.setattr(engine, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(engine, "dist", SimpleNamespace(get_world_size=lambda: 8, get_rank=lambda: 7))
    stub = SimpleNamespace(local_rank=7)
    arguments = zero._device_arguments(torch.device("cuda", 0))
    engine.DeepSpeedEngine._set_distributed_vars(stub, arguments)
    assert (taken, stub.device, stub.global_rank) == ([0], torch.device("cuda", 0), 7)
    assert zero._device_arguments(torch.device("cpu")) is None


def test_the_lengths_of_texts_stay_on_the_host_where_torch_moves_all_tensors_to_the_device() -> None:
    tensor = torch.zeros(2, 3)
    lengths = np.array([3, 1])
    inputs = Inputs({"text": FieldInput(tensor.long(), lengths), "poster": FieldInput(tensor)}, tensor, tensor)
    (fields,) = _recursive_to(inputs.for_model, torch.device("meta"), False)[0]
    assert fields["text"].values.device == fields["poster"].values.device == torch.device("meta")
    assert fields["text"].lengths is lengths


# ---- memory that is full


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("NCCL error in: ...: unhandled cuda error, Cuda failure 'out of memory'"),
]
OTHER = [
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", [*FULL, *OTHER], ids=str)
def test_a_full_device_is_known_whichever_library_says_it(error: Exception) -> None:
    assert is_out_of_memory(error) == (error in FULL)


def batch(samples: int) -> Batch:
    ones = np.ones((samples, 19), np.float32)
    return Batch(np.arange(samples), ones, ones[:, 0].copy())


class Small:
    """A strategy whose forward pass fails with more than two samples."""

    def __init__(self, error: Exception) -> None:
        self.error, self.model = error, torch.nn.Linear(1, 1)
        self.optimizer = SimpleNamespace(zero_grad=lambda set_to_none: None)

    def micro_batch(self, last: bool) -> Any:
        return torch.no_grad()

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        if len(labels) > 2:
            raise self.error
        return labels

    def backward(self, loss: torch.Tensor) -> None: ...
    def step(self, clip_norm: float | None) -> torch.Tensor:
        return torch.zeros(())


def steps_of(error: Exception, world: World, folder: Path, note: Callable[[], None]) -> StepResult:
    """A step of 8 samples with the back-off, on one rank (careful) or where ranks exchange inside their passes."""
    strategy: Any = Small(error)
    compute = SimpleNamespace(micro_batch=8, splits=True)
    experiment: Any = SimpleNamespace(
        config=Config(), world=world, compute=compute, model=strategy.model, strategy=strategy
    )
    train_step = TrainStep(strategy, world, loss_sum, torch.no_grad, None)

    def take(pieces: list[Batch], samples: int, **deferred: Any) -> StepResult:
        def prepare(piece: Batch) -> Any:
            labels = torch.as_tensor(piece.labels)
            return SimpleNamespace(
                for_model=(labels,), labels=labels, weights=torch.as_tensor(piece.weights), absent=(), odd=False
            )

        return train_step.take(pieces, prepare, agree(world, pieces, False, False), **deferred)

    return Backoff(experiment, folder, note).step([batch(8)], take, seed=0)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_the_back_off_halves_until_it_fits_and_notes_what_filled_the_memory(error: Exception, tmp_path: Path) -> None:
    noted: list[int] = []
    result = steps_of(error, CPU_WORLD, tmp_path, lambda: noted.append(1))
    assert result.totals[1] == 8
    assert (tmp_path / NOTE).read_text() == "2"
    assert len(noted) == 2  # with 8 samples, and with 4


def test_another_error_is_no_reason_to_halve(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        steps_of(OTHER[0], CPU_WORLD, tmp_path, pytest.fail)
    assert not (tmp_path / NOTE).exists()


@pytest.mark.parametrize("error", FULL, ids=str)
def test_where_ranks_cannot_agree_it_is_noted_too_and_the_next_start_takes_halves(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genre_dist.training.backoff.strategy_name", lambda config, size: "fsdp")
    world = World(0, 2, torch.device("cpu"))
    monkeypatch.setattr(World, "sum", lambda self, tensor: tensor)
    noted: list[int] = []
    with pytest.raises(MemoryError, match="micro-batches of 4"):
        steps_of(error, world, tmp_path, lambda: noted.append(1))
    assert noted == [1]
    assert (tmp_path / NOTE).read_text() == "4"


def test_a_snapshot_is_written_when_memory_runs_out_in_the_training_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    memory = SimpleNamespace(_record_memory_history=lambda **_: None, _dump_snapshot=written.append)
    monkeypatch.setattr(torch.cuda, "memory", memory)
    profiler = Profiler(TrainConfig(memory_snapshot=True), tmp_path, CUDA_WORLD)
    for error in (FULL[1], OTHER[0]):
        with pytest.raises(RuntimeError), profiler.watching():
            raise error
    assert [Path(name).name for name in written] == ["memory-out-of-memory-rank-0.pickle"]
    assert profiling.MOST_EVENTS > 0


# ---- determinism


def test_cublas_is_told_of_its_workspace_before_the_device_is_first_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG_BEFORE", "")  # the variable that the run sets is taken back with this

    class Met(Exception):  # noqa: N818
        pass

    def start_world(*_: object) -> None:
        raise Met(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))

    monkeypatch.setattr("genre_dist.parallel.world.start_world", start_world)
    for wanted, told in (("false", None), ("true", ":4096:8")):
        config = parse_config(["--train.deterministic", wanted, "--run.dir", str(tmp_path)]).config
        with pytest.raises(Met) as met:
            entry.train(config)
        assert met.value.args == (told,)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize("wanted", [False, True])
def test_cudnn_tries_out_what_is_fastest_unless_results_must_repeat(wanted: bool) -> None:
    before = torch.backends.cudnn.benchmark
    with deterministic(wanted):
        assert torch.backends.cudnn.benchmark == (not wanted)
        assert torch.are_deterministic_algorithms_enabled() == wanted
    assert torch.backends.cudnn.benchmark == before


# ---- decoding


def poster() -> NDArray[np.uint8]:
    """Patches of not too loud colours, uint8 [256, 256, 3]."""
    small = np.random.default_rng(0).integers(64, 192, (16, 16, 3), np.uint8)
    return np.asarray(cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC))


def test_a_decoder_that_replicates_chroma_differs_by_less_than_2_in_the_mean_and_by_much_in_places() -> None:
    """The tolerance for GPU decoding: nvJPEG replicates, libjpeg-turbo interpolates."""
    jpeg = simplejpeg.encode_jpeg(poster(), quality=90, colorsubsampling="420")
    fancy = simplejpeg.decode_jpeg(jpeg).astype(int)
    replicated = simplejpeg.decode_jpeg(jpeg, fastupsample=True).astype(int)
    difference = np.abs(fancy - replicated)
    assert 0 < difference.mean() < 2
    assert difference.max() > 8
