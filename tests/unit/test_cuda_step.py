"""A training step on a GPU never waits, and computes in no type but bf16, fp32 and TF32: on fake CUDA tensors."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import norm_kernels
import numpy as np
import pytest
import torch
import torch.distributed as dist
from cuda_tensors import CUDA, Noted, cuda_tensors
from tiny_text import write_bert
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from genre_dist.config import (
    Config,
    DataConfig,
    HeadsConfig,
    ModelConfig,
    OptimConfig,
    PosterConfig,
    TextConfig,
    TrainConfig,
)
from genre_dist.models.batchnorm import NOTHING
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.models.text import TextEncoder
from genre_dist.parallel import replicated
from genre_dist.parallel.strategies import make_strategy
from genre_dist.parallel.world import World
from genre_dist.schema import TMDB
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.stream.manifest import load_manifest
from genre_dist.training.backoff import Backoff
from genre_dist.training.ema import Average
from genre_dist.training.evaluation import Evaluator
from genre_dist.training.experiment import Compute, Experiment, _computed_in, autocast_for
from genre_dist.training.loss import loss_sum
from genre_dist.training.optimizer import make_optimizer
from genre_dist.training.step import Figures, TrainStep, agree
from genre_dist.training.step_log import Step, StepLog

SAMPLES, WORDS = 4, 50
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),  # torch's own code does
]


def batch(step: int = 0, words: int = 7) -> Batch:
    draw = np.random.default_rng(step)
    return Batch(
        ids=np.arange(SAMPLES),
        labels=np.zeros((SAMPLES, 19), np.float32),
        weights=np.ones(SAMPLES, np.float32),
        arrays={
            "poster.images": draw.integers(0, 256, (SAMPLES, 64, 64, 3), np.uint8),
            "text.tokens": draw.integers(2, WORDS, (SAMPLES, words), np.int32),
            "text.lengths": np.minimum([7, 3, 5, 1], words),
        },
    )


def config(**poster: Any) -> Config:
    return Config(
        model=ModelConfig(
            text=TextConfig(hidden=8, layers=2, embedding_dim=8),
            poster=PosterConfig(arch="helpers:small_resnet", weights="none", **poster),
            heads=HeadsConfig(hidden=(8,)),
        ),
        data=DataConfig(image_size=32, global_batch=SAMPLES, micro_batch=SAMPLES),
    )


def with_text(**text: Any) -> Config:
    model = config().model
    return replace(config(), model=replace(model, text=replace(model.text, **text)))


class Run:
    """What the loop does in its steps, with a real model, strategy, back-off and record, on a GPU that is not there."""

    def __init__(self, settings: Config, world: World, noted: Noted, tmp_path: Path, precision: str = "bf16") -> None:
        self.noted, self.rows = noted, list[dict[str, Any]]()
        with torch.device(CUDA):
            model = GenreClassifier(settings.model, 19, 32, WORDS, None, load_weights=False)
        strategy: Any = make_strategy(settings, model, partial(make_optimizer, config=settings), world, precision, True)
        decay = settings.train.ema_decay
        train_step = TrainStep(strategy, world, loss_sum, autocast_for(precision, CUDA), settings.optim.clip_norm)
        stream: Any = SimpleNamespace(reader=SimpleNamespace(index=SimpleNamespace(samples=100)), steps_per_epoch=100)
        manifest: Any = None
        self.experiment = Experiment(
            config=settings,
            world=world,
            manifest=manifest,
            stream=stream,
            model=model,
            strategy=strategy,
            average=None if decay is None else Average(model, decay, world),
            train_step=train_step,
            compute=Compute(precision, SAMPLES, splits=True, flops_per_sample=1.0),
        )
        self.step_log = StepLog(self.experiment, SimpleNamespace(write=lambda row: self.rows.append(row)))  # type: ignore[arg-type]
        self.backoff = Backoff(self.experiment, tmp_path)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.noted.step += 1
            batches = [batch(self.noted.step)]
            counts = agree(self.experiment.world, batches, stop=False, save=False)
            result = self.backoff.step(batches, partial(self.experiment.take, counts, 0), seed=0)
            self.experiment.state.follow()
            self.step_log.add(Step(self.noted.step, Figures(result), 0.0, batches))


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Noted]:
    with cuda_tensors(monkeypatch) as found:
        yield found


class DataParallel(nn.Module):
    """DistributedDataParallel hands on what it is given if it is told of no device; its reducer asks for a real one."""

    def __init__(self, model: nn.Module, device_ids: None, **_: Any) -> None:
        super().__init__()
        assert device_ids is None, "with one it moves its inputs to the device, and waits"
        self.model = model

    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.model(*inputs)

    def no_sync(self) -> AbstractContextManager[Any]:
        return nullcontext()


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Rank 0 of 2 whose collectives return at once."""
    monkeypatch.setattr(replicated, "DistributedDataParallel", DataParallel)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield World(0, 2, CUDA)
    dist.destroy_process_group()


ALONE = World(0, 1, CUDA)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers."""
    pytest.importorskip("transformers")
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(
    "settings",
    [
        config(),
        replace(
            config(), model=replace(config().model, text=TextConfig(arch="gru", hidden=8, layers=1, embedding_dim=8))
        ),
        replace(config(), model=replace(config().model, text=replace(config().model.text, pooling="max"))),
        replace(config(), train=TrainConfig(ema_decay=0.9), optim=OptimConfig(clip_norm=None)),
        config(frozen=True),
        replace(config(), data=replace(config().data, crop_scale=(1.0, 1.0), image_size=48)),
    ],
    ids=["lstm", "gru", "max", "ema", "frozen", "whole images"],
)
def test_after_the_first_step_nothing_waits_for_the_device(settings: Config, noted: Noted, tmp_path: Path) -> None:
    run = Run(settings, ALONE, noted, tmp_path)
    run.steps(1)
    noted.blocking.clear()
    run.steps(3)
    assert noted.blocking == []
    assert [row["step"] for row in run.rows] == [1, 2, 3]  # one step late


@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
def test_nor_with_a_transformer_whose_masks_come_from_lengths(
    pooling: str, transformer: Path, noted: Noted, tmp_path: Path
) -> None:
    run = Run(with_text(arch=f"hf:{transformer}", pooling=pooling), ALONE, noted, tmp_path)
    run.steps(1)
    noted.blocking.clear()
    run.steps(3)
    assert noted.blocking == []
    assert {kind for kind in noted.types if kind.is_floating_point} == {torch.float32, torch.bfloat16}


def test_the_librarys_own_masks_would_wait(transformer: Path, noted: Noted, tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    run = Run(with_text(arch=f"hf:{transformer}", pooling="mean"), ALONE, noted, tmp_path)
    encoder = run.experiment.model.text_encoders["text"]
    assert isinstance(encoder, PretrainedText)
    encoder.takes_wide_masks = False
    run.steps(1)
    assert any("pretrained_text.py" in blocking for blocking in noted.blocking)


@pytest.mark.parametrize("norm", ["train", "sync"])
def test_nor_with_ddp_where_batch_norm_may_be_synchronised(
    norm: str, noted: Noted, two_ranks: World, tmp_path: Path
) -> None:
    settings = config(batch_norm=norm)
    settings = replace(settings, data=replace(settings.data, global_batch=2 * SAMPLES))
    run = Run(settings, two_ranks, noted, tmp_path)
    run.backoff.deferred_steps = 1  # the first steps agree, on the hosts, whether memory was enough
    run.steps(2)
    noted.blocking.clear()
    before = noted.collectives
    run.steps(2)
    assert noted.blocking == []
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in run.experiment.model.modules())
    # counts and losses, besides what DistributedDataParallel itself does; a synchronised norm gathers and adds up once
    assert (noted.collectives - before) / 2 == 2 + 2 * norms * (norm == "sync")


def test_what_is_uploaded_in_a_step_is_few_and_pinned(noted: Noted, tmp_path: Path) -> None:
    run = Run(config(), ALONE, noted, tmp_path)
    run.steps(1)
    before = noted.copies
    run.steps(1)
    # images, tokens, labels, weights; boxes of crops; the order of the texts; counts; and the figures on their way back
    assert noted.copies - before == 8


def test_buffers_are_kept_in_case_memory_runs_out_by_one_call_a_type_and_not_one_a_buffer(
    noted: Noted, tmp_path: Path
) -> None:
    run = Run(config(), ALONE, noted, tmp_path)
    run.steps(1)
    noted.calls.clear()
    run.steps(1)
    buffers = list(run.experiment.model.buffers())
    assert noted.calls["_foreach_copy_"] == len({buffer.dtype for buffer in buffers}) == 2
    assert noted.calls["clone"] < len(buffers) / 2


def test_nothing_is_computed_in_fp16_under_bf16_autocast(noted: Noted, tmp_path: Path) -> None:
    run = Run(config(), ALONE, noted, tmp_path)
    run.steps(2)
    floats = {kind for kind in noted.types if kind.is_floating_point}
    assert floats == {torch.float32, torch.bfloat16}


def test_nor_in_bf16_without_autocast(noted: Noted, tmp_path: Path) -> None:
    run = Run(config(), ALONE, noted, tmp_path, precision="fp32")
    run.steps(2)
    assert {kind for kind in noted.types if kind.is_floating_point} == {torch.float32}


def test_the_text_encoder_computes_on_a_stream_beside_the_posters_and_not_where_weights_come_and_go(
    noted: Noted, tmp_path: Path
) -> None:
    run = Run(config(), ALONE, noted, tmp_path)
    run.steps(1)
    assert noted.streams.used.count("beside") == 2  # the copies', and the texts'
    run.experiment.model.text_beside = False
    run.steps(1)
    assert noted.streams.used.count("beside") == 3


def test_an_evaluation_waits_once_at_its_end(noted: Noted, sample_shards: Path, tmp_path: Path) -> None:
    settings = replace(config(), data=replace(config().data, workers=0))
    manifest = load_manifest(sample_shards)
    with torch.device(CUDA):
        model = GenreClassifier(settings.model, 19, 32, manifest.text["words"], None, load_weights=False)
    noted.blocking.clear()

    def next_batch() -> AbstractContextManager[Any]:
        noted.step += 1
        return autocast_for("bf16", CUDA)()

    told = Evaluator(model, settings, ALONE, next_batch, SAMPLES).evaluate(manifest, "val")
    assert told is not None
    assert len(told.ids) > 3 * SAMPLES
    assert [what.split(":")[0] for what in noted.blocking if "images.py" not in what] == ["evaluation.py"]


def test_texts_come_in_few_widths(noted: Noted) -> None:
    def width(words: int, device: torch.device) -> int:
        tokens = to_device(batch(words=words), device, whole_pixels(DataConfig())).fields["text"].values
        assert tokens is not None
        return tokens.shape[1]

    assert {width(words, CUDA) for words in (1, 7, 64, 65)} == {64, 128}
    assert width(7, torch.device("cpu")) == 7


@pytest.mark.parametrize(
    ("precision", "tf32", "told"),
    [
        ("bf16", True, "texts in TF32, posters in bf16, heads in bf16"),
        ("bf16", False, "texts in fp32, posters in bf16, heads in bf16"),
        ("fp32", True, "texts in TF32, posters in TF32, heads in fp32"),
    ],
)
def test_a_run_says_what_each_part_computes_in_on_a_gpu(
    precision: str, tf32: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    model = SimpleNamespace(text_encoders={"text": 1}, image_encoders={"poster": 1})
    manifest = SimpleNamespace(declared=TMDB)
    experiment: Any = SimpleNamespace(world=ALONE, compute=Compute(precision, 1), model=model, manifest=manifest)
    assert told in _computed_in(experiment)


# ---- with a GPU: the same held against the real thing

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_gpu
@pytest.mark.parametrize("settings", [config(), with_text(arch="gru"), with_text(pooling="max")])
def test_on_a_gpu_torch_finds_no_operation_that_synchronises(settings: Config, tmp_path: Path) -> None:
    run = Run(settings, ALONE, Noted(), tmp_path)
    run.steps(3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.steps(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(row["loss"]) for row in run.rows)


@needs_gpu
def test_on_a_gpu_a_transformer_synchronises_nothing_either(transformer: Path, tmp_path: Path) -> None:
    run = Run(with_text(arch=f"hf:{transformer}", pooling="mean"), ALONE, Noted(), tmp_path)
    run.steps(3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.steps(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(row["loss"]) for row in run.rows)


@needs_gpu
def test_on_a_gpu_two_streams_compute_what_one_does(tmp_path: Path) -> None:
    told = []
    for beside in (True, False):
        torch.manual_seed(0)
        run = Run(config(batch_norm="eval"), ALONE, Noted(), tmp_path, precision="fp32")
        run.experiment.model.text_beside = beside
        run.steps(3)
        told.append([row["loss"] for row in run.rows] + [p.sum().item() for p in run.experiment.model.parameters()])
    assert told[0] == pytest.approx(told[1], rel=1e-3)


@needs_gpu
@pytest.mark.parametrize("arch", ["lstm", "gru"])
@pytest.mark.parametrize("pooling", ["last", "max", "mean"])
def test_on_a_gpu_texts_are_encoded_as_on_a_cpu_under_autocast_too(arch: Any, pooling: Any) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(arch=arch, pooling=pooling, hidden=16, layers=2, embedding_dim=8), WORDS, None)
    tokens, lengths = torch.randint(2, WORDS, (SAMPLES, 7)), np.array([7, 3, 5, 1])
    plain = encoder(tokens, lengths)
    plain.square().sum().backward()
    expected = [plain, *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)]
    encoder.zero_grad()
    encoder.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        found = encoder(tokens.cuda(), lengths)
    assert found.dtype == torch.float32
    found.square().sum().backward()
    for value, wanted in zip(
        [found, *(p.grad for p in encoder.parameters() if p.grad is not None)], expected, strict=True
    ):
        torch.testing.assert_close(value.cpu(), wanted, atol=5e-3, rtol=2e-2)  # TF32 has ten bits of mantissa


@needs_gpu
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("counts", [(300.0, 200.0), (NOTHING, 200.0), (NOTHING, NOTHING)])
def test_on_a_gpu_the_kernels_of_synchronised_batch_norm_compute_what_is_written_out(
    format: torch.memory_format, counts: tuple[float, float]
) -> None:
    generator = torch.manual_seed(0)
    values, grad = (torch.randn(3, 4, 6, 6, generator=generator) + 2 for _ in range(2))
    weight, bias = torch.rand(4, generator=generator) + 0.5, torch.randn(4, generator=generator)

    def compute(kernels: Any, device: torch.device) -> list[torch.Tensor]:
        on = [tensor.to(device) for tensor in (weight, bias)]
        own, back = (tensor.to(device).to(memory_format=format) for tensor in (values, grad))
        mean, inverse = kernels.batch_norm_stats(own, 1e-5)
        means, inverses = torch.stack([mean, mean + 1]), torch.stack([inverse, inverse * 2])
        tracked = torch.zeros(4, device=device), torch.ones(4, device=device)
        shares = torch.tensor(counts, device=device)
        mean, inverse = kernels.batch_norm_gather_stats_with_counts(own, means, inverses, *tracked, 1.0, 1e-5, shares)
        output = kernels.batch_norm_elemt(own, *on, mean, inverse, 1e-5)
        sums = kernels.batch_norm_backward_reduce(back, own, mean, inverse, on[0], True, True, True)
        divisors = torch.tensor([300, 200], dtype=torch.int32, device=device)
        moved = kernels.batch_norm_backward_elemt(back, own, mean, inverse, on[0], sums[0], sums[1], divisors)
        return [tensor.cpu() for tensor in (mean, inverse, output, *sums, moved, *tracked)]

    for found, wanted in zip(compute(torch, CUDA), compute(norm_kernels, torch.device("cpu")), strict=True):
        assert found.isfinite().all()
        if counts[1] > 1:  # where nobody is counted the numbers mean nothing
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
