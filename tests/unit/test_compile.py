"""What is compiled, when, and for which size of batch."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers import losses, options, rows, small_resnet
from torch import nn
from torch._dynamo.testing import CompileCounter

from genre_dist.config import Config, DataConfig, ModelConfig, PosterConfig, TextConfig, TrainConfig
from genre_dist.models import levers
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.levers import Choice, choose_compiling, compile_blocks
from genre_dist.models.recompute import recompute_activations
from genre_dist.parallel.world import LONGEST_ALLOWED, World
from genre_dist.stream.batch import Batch, part_of
from genre_dist.stream.device_feed import Size, to_device, whole_pixels
from genre_dist.train import main
from genre_dist.training import experiment

pytestmark = pytest.mark.slow

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


# ---- blocks, not the network


def test_blocks_alike_are_compiled_once_and_evaluation_and_smaller_batches_compile_nothing_in_training() -> None:
    net = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [4, 2, 1, 1], width_per_group=8)
    counter = CompileCounter()
    compile_blocks(net, backend=counter)

    def compiled_by(images: int) -> int:
        before = counter.frame_count
        net(torch.randn(images, 3, 32, 32))
        return counter.frame_count - before

    net.train()
    assert compiled_by(4) == 6  # of 8 blocks: the first of each stage, and the other ones of the first two stages
    assert compiled_by(4) == 0
    with torch.compiler.set_stance("force_eager"):  # as a step does with an odd batch
        assert compiled_by(3) == 0
    net.eval()
    with torch.no_grad():
        assert compiled_by(4) == 6
        assert compiled_by(4) == 0
    net.train()
    assert compiled_by(4) == 0  # back from an evaluation


@pytest.mark.parametrize("kind", ["none", "blocks"])
def test_a_compiled_network_computes_the_same_and_keeps_its_names(kind: str) -> None:
    told = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = small_resnet().train()
        names = list(net.state_dict())
        if compiled:
            compile_blocks(net, backend="eager")  # Dynamo without a code generator: no compiler is needed
        recompute_activations(net, kind)  # type: ignore[arg-type]
        net(torch.randn(2, 3, 32, 32)).square().mean().backward()
        assert list(net.state_dict()) == names
        told.append({name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers()))
    torch.testing.assert_close(*told)


def test_a_network_without_blocks_is_compiled_as_a_whole() -> None:
    net, counter = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), CompileCounter()
    compile_blocks(net, backend=counter)
    net(torch.randn(2, 3, 8, 8))
    assert counter.frame_count == 1


# ---- one size of batch


def batch_of(samples: int) -> Batch:
    draw = np.random.default_rng(0)
    return Batch(
        ids=np.arange(samples),
        labels=np.ones((samples, 19), np.float32),
        weights=np.ones(samples, np.float32),
        arrays={
            "poster.images": draw.integers(0, 256, (samples, 32, 32, 3), np.uint8),
            "text.tokens": draw.integers(2, 9, (samples, 7), np.int32),
            "text.lengths": np.full(samples, 7),
        },
    )


def test_a_smaller_batch_is_filled_up_with_samples_of_weight_0_where_no_batch_norm_sees_them() -> None:
    pixels, size = whole_pixels(DataConfig(image_size=32)), Size(8, fill=True)
    inputs, plain = (to_device(batch_of(5), CPU, pixels, wanted) for wanted in (size, None))
    assert not inputs.odd
    text, poster = inputs.fields["text"], inputs.fields["poster"]
    of_five = (plain.labels, plain.weights, *plain.fields["text"][:2], plain.fields["poster"].values)
    filled = (inputs.labels, inputs.weights, *text[:2], poster.values)
    for few, value in zip(of_five, filled, strict=True):
        assert few is not None
        assert value is not None
        assert len(value) == 8
        assert np.array_equal(value[:5], few)
    assert inputs.weights.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert poster.values is not None
    assert poster.values.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("samples", "size", "odd"),
    [(8, Size(8, fill=False), False), (5, Size(8, fill=False), True), (0, Size(8, fill=True), True), (5, None, False)],
)
def test_a_batch_of_another_size_is_odd_where_it_may_not_be_filled_up(
    samples: int, size: Size | None, odd: bool
) -> None:
    batch = part_of(batch_of(8), slice(0, samples))
    inputs = to_device(batch, CPU, whole_pixels(DataConfig(image_size=32)), size)
    assert inputs.odd == odd
    assert len(inputs.labels) == max(1, samples)  # none at all is one blank sample


# ---- when, and why not


def config(compile: bool | str = "auto", strategy: str = "auto", **poster: object) -> Config:
    model = ModelConfig(poster=PosterConfig(**poster))  # type: ignore[arg-type]
    made = Config(model=model, train=TrainConfig(compile=compile))  # type: ignore[arg-type]
    object.__setattr__(made.parallel, "strategy", strategy)
    return made


def graphed(config: Config) -> Config:
    return replace(config, train=replace(config.train, cuda_graph=True))


@pytest.fixture
def compiler_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "_why_not_compiling", lambda device: None)


@pytest.mark.usefixtures("compiler_works")
@pytest.mark.parametrize(
    ("asked", "steps", "wanted", "why"),
    [
        (config(), 5000, False, "train.compile=auto: off, without train.cuda_graph"),
        (graphed(config()), 500, True, "train.compile=auto: on, the image encoder's blocks, for 500 steps"),
        (graphed(config()), 499, False, "train.compile=auto: off, the run has 499 steps"),
        (config(True), 10, True, "train.compile=True: on"),
        (config(False), 5000, False, ""),
        (
            graphed(config(batch_norm="sync")),
            5000,
            False,
            "off, ranks exchange BatchNorm's statistics inside the blocks",
        ),
        (graphed(config(strategy="zero3")), 5000, False, "off, zero3"),
        (config(arch="none"), 5000, False, ""),
        (
            Config(
                model=ModelConfig(text=TextConfig(frozen=True), poster=PosterConfig(frozen=True)),
                data=DataConfig(crop_scale=(1, 1)),
                train=TrainConfig(cuda_graph=True),
            ),
            5000,
            False,
            "off, encoders are frozen and run once",
        ),
        (graphed(Config(train=TrainConfig(activation_checkpointing="selective"))), 5000, False, "activation_checkpoin"),
    ],
)
def test_on_a_gpu_long_runs_are_compiled_and_the_reason_is_told(
    asked: Config, steps: int, wanted: bool, why: str
) -> None:
    found = choose_compiling(asked, CUDA, steps)
    assert found.wanted == wanted
    assert why in found.why
    assert bool(why) == bool(found.why)
    assert choose_compiling(asked, CPU, steps) == Choice(False)


@pytest.mark.parametrize("asked", [True, "auto"])
def test_without_a_compiler_that_works_training_goes_without_and_says_why(
    asked: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(torch, "compile", refuse)
    found = choose_compiling(graphed(config(asked)), CUDA, 5000)
    assert not found.wanted
    assert found.why.endswith("no compiler works here (Failed to find C compiler. Please specify via CC)")


def test_a_run_says_what_each_part_computes_in(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(sample_shards, tmp_path / "run", "--train.steps", 1, "--train.precision", "bf16")
    assert main(arguments) == 0
    assert "computes texts in fp32, posters in bf16, heads in bf16; weights, statistics and loss in fp32" in (
        capsys.readouterr().out
    )


def test_a_compiled_run_learns_the_same_and_compiles_nothing_for_the_smaller_last_step_of_an_epoch(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a CPU, with the code generator left out, as it would go on a GPU."""
    counter = CompileCounter()

    def pull(model: GenreClassifier, train: TrainConfig, device: torch.device) -> None:
        assert train.compile is True
        assert model.poster is not None
        levers.pull_levers(model, train, device)  # on a CPU it leaves compiling out
        compile_blocks(model.poster.network, backend=counter)

    more = ("--model.poster.arch", "helpers:small_resnet", "--data.global_batch", 8, "--data.micro_batch", 4)
    # an epoch has 22 steps of 8 and one of 6
    more = (*more, "--train.steps", 24, "--train.eval_every_steps", 24, "--data.workers", 0)
    assert main(options(sample_shards, tmp_path / "plain", *more)) == 0
    monkeypatch.setattr(experiment, "choose_compiling", lambda *_: Choice(True, "train.compile=auto: on"))
    monkeypatch.setattr(experiment, "pull_levers", pull)
    capsys.readouterr()
    assert main(options(sample_shards, tmp_path / "compiled", *more)) == 0
    told = capsys.readouterr().out
    assert told.count("compiling the image encoder's blocks: under a minute, once") == 1
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    evaluated = [rows(run, "val")[-1]["loss"] for run in (tmp_path / "compiled", tmp_path / "plain")]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-6)
    assert counter.frame_count == 2 * 5  # five kinds of blocks, in training and in evaluation


def test_while_a_rank_compiles_the_others_may_wait_longer() -> None:
    allowed: list[float] = []
    watchdog: Any = SimpleNamespace(allow=allowed.append)
    World(0, 2, CPU, watchdog).allow(LONGEST_ALLOWED)
    World(0, 1, CPU).allow(LONGEST_ALLOWED)  # alone nobody waits
    assert allowed == [LONGEST_ALLOWED]
