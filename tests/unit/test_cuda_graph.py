"""The image encoder's passes as CUDA graphs: when they are used, and that they compute what eager passes do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import small_resnet
from torch import Tensor, nn

from genre_dist.config import Config, ModelConfig, PosterConfig, TrainConfig
from genre_dist.models import cuda_graph
from genre_dist.models.cuda_graph import EAGER_CALLS, graph_passes
from genre_dist.models.levers import Choice, choose_cuda_graph

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def config(poster: PosterConfig | None = None, **train: Any) -> Config:
    return Config(model=ModelConfig(poster=poster or PosterConfig()), train=TrainConfig(**train))


@pytest.mark.parametrize(
    ("asked", "strategy", "why"),
    [
        (config(cuda_graph=True), "single", ""),
        (config(cuda_graph=True), "ddp", ""),
        (config(cuda_graph=True), "fsdp", "fsdp moves the weights"),
        (config(cuda_graph=True), "zero1", "zero1 moves the weights"),
        (config(cuda_graph=True, activation_checkpointing="blocks"), "single", "activation_checkpointing=blocks"),
        (config(PosterConfig(batch_norm="sync"), cuda_graph=True), "ddp", "BatchNorm"),
    ],
)
def test_passes_are_graphed_where_it_helps_and_the_reason_is_told(asked: Config, strategy: str, why: str) -> None:
    found = choose_cuda_graph(asked, CUDA, strategy)
    assert found.wanted is (not why)
    assert found.why.startswith(f"train.cuda_graph=True{' is left out' * bool(why)}: ")
    assert why in found.why


@pytest.mark.parametrize(
    "asked",
    [
        config(),
        config(PosterConfig(arch="none"), cuda_graph=True),
        config(PosterConfig(frozen=True), cuda_graph=True),
    ],
    ids=["not wanted", "no images", "frozen"],
)
def test_nothing_is_said_where_there_is_nothing_to_graph(asked: Config) -> None:
    assert choose_cuda_graph(asked, CUDA, "single") == Choice(False)


def test_a_cpu_has_no_graphs() -> None:
    assert choose_cuda_graph(config(cuda_graph=True), CPU, "single") == Choice(False)


class OnGpu:
    """Stands in for images on a GPU: what decides about a capture, and no pixels."""

    is_cuda, dtype = True, torch.float32

    def __init__(self, samples: int) -> None:
        self.shape = (samples, 3, 8, 8)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes of a graphed network, captures among them, in their order."""
    made: list[str] = []

    def capture(self: Any, images: OnGpu, trained: list[Tensor], kind: tuple[Any, ...]) -> bool:
        made.append(f"capture {images.shape[0]}")
        self.passes = type("Passes", (), {"kind": kind})()
        return True

    monkeypatch.setattr(cuda_graph._Graphed, "_capture", capture)
    monkeypatch.setattr(
        cuda_graph._Replay, "apply", lambda passes, images, *_: made.append(f"replay {images.shape[0]}")
    )
    return made


@pytest.fixture
def graphed(calls: list[str]) -> Callable[..., None]:
    network: Any = nn.Linear(2, 2)
    network.forward = lambda images: calls.append(f"eager {images.shape[0]}")
    graph_passes(network)

    def passes(*samples: int, mode: Callable[[nn.Module], Any] = nn.Module.train) -> None:
        mode(network)
        for number in samples:
            network.forward(OnGpu(number))

    return passes


def test_the_first_calls_are_eager_and_a_size_that_comes_once_stays_so(
    graphed: Callable[..., None], calls: list[str]
) -> None:
    assert EAGER_CALLS == 2
    graphed(8, 8, 8, 8, 3, 8, 3, 8)
    assert calls == ["eager 8", "eager 8", "capture 8", *["replay 8"] * 2, "eager 3", "replay 8", "eager 3", "replay 8"]


def test_smaller_micro_batches_after_a_lack_of_memory_are_captured_anew(
    graphed: Callable[..., None], calls: list[str]
) -> None:
    graphed(8, 8, 8, 4, 4, 4, 4)
    assert calls[4:] == ["eager 4", "eager 4", "capture 4", "replay 4", "replay 4"]


def test_a_part_that_freezes_is_captured_anew(graphed: Callable[..., None], calls: list[str]) -> None:
    graphed(8, 8, 8)
    graphed(8, 8, 8, mode=lambda network: network.train().bias.requires_grad_(False))  # type: ignore[union-attr]
    assert calls[4:] == ["eager 8", "eager 8", "capture 8", "replay 8"]


def test_without_gradients_passes_are_eager(graphed: Callable[..., None], calls: list[str]) -> None:
    graphed(8, 8, 8)
    with torch.no_grad():
        graphed(8, mode=nn.Module.eval)
    graphed(8)
    assert calls[4:] == ["eager 8", "replay 8"]


# ---- with a GPU


def trained(graphed: bool, autocast: bool, sizes: tuple[int, ...], accumulate: int = 1) -> list[Tensor]:
    """Losses, then weights and statistics after steps of micro-batches of these sizes."""
    torch.manual_seed(0)
    network = small_resnet().cuda().to(memory_format=torch.channels_last).train()
    if graphed:
        graph_passes(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    losses = []
    for step, samples in enumerate(sizes):
        for part in range(accumulate):
            images = torch.randn(samples, 3, 32, 32, generator=torch.manual_seed(10 * step + part)).cuda()
            with torch.autocast("cuda", torch.bfloat16, autocast):
                output = network(images.to(memory_format=torch.channels_last))
            loss = output.float().square().mean()
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [*losses, *network.state_dict().values()]


@needs_gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_on_a_gpu_replayed_passes_learn_what_eager_ones_do(autocast: bool, accumulate: int) -> None:
    sizes = (8, 8, 8, 8, 5, 8, 8, 4, 4, 4, 4)
    torch.backends.cudnn.deterministic = True
    try:
        eager, replayed = (trained(graphed, autocast, sizes, accumulate) for graphed in (False, True))
    finally:
        torch.backends.cudnn.deterministic = False
    for one, other in zip(eager, replayed, strict=True):
        torch.testing.assert_close(other, one, rtol=2e-2 if autocast else 1e-4, atol=1e-4)


@needs_gpu
def test_on_a_gpu_a_network_that_waits_for_it_stays_eager(capfd: pytest.CaptureFixture[str]) -> None:
    network: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)).cuda()
    images = torch.randn(2, 3, 8, 8).cuda()
    network(images)
    eager = network.forward
    network.forward = lambda images: eager(images) * float(images.mean())
    graph_passes(network)
    for _ in range(5):
        network(images).sum().backward()
    assert capfd.readouterr().err.count("the image encoder runs without a CUDA graph: ") == 1
    assert torch.ones(1).cuda().item() == 1


@needs_gpu
def test_on_a_gpu_that_is_full_passes_stay_eager(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_graph, "MOST_MEMORY", 0.0)
    trained(True, False, (4,) * 4)
    assert "of the GPU's memory" in capfd.readouterr().err
