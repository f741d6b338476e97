"""A dry run on a machine with a GPU says what is wrong with it for this run."""

from pathlib import Path

import pytest
from fake_cuda import GB, FakeCuda
from helpers import options

from genre_dist.config.files import parse_config
from genre_dist.models.levers import Choice
from genre_dist.training import estimate as estimates
from genre_dist.training.estimate import estimate

pytestmark = pytest.mark.slow

RESNET = (
    *("--model.poster.arch", "resnet50", "--model.poster.weights", "none", "--model.text.arch", "none"),
    *("--train.precision", "bf16"),
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def told(shards: Path, ranks: int, *more: object) -> str:
    return estimate(parse_config(options(shards, "run", *RESNET, *more)).config, ranks)


def test_a_gpu_that_others_fill(cuda: FakeCuda, sample_shards: Path) -> None:
    cuda.free = 20 * GB
    text = told(sample_shards, 1, "--data.global_batch", 64)
    assert "20.0 GB of 80.0 GB are free, other processes hold the rest" in text


def test_a_gpu_that_is_free_is_no_news(cuda: FakeCuda, sample_shards: Path) -> None:
    assert "are free" not in told(sample_shards, 1, "--data.global_batch", 64)


@pytest.mark.parametrize(
    ("ranks", "batches", "said"),
    [
        (8, {"global_batch": 64}, "What helps: a larger data.global_batch, fewer ranks, train.compile"),
        (1, {"global_batch": 8}, "What helps: a larger data.global_batch, train.compile"),
        (1, {"global_batch": 512, "micro_batch": 4}, "What helps: a larger data.micro_batch, train.compile"),
        (1, {"global_batch": 512, "micro_batch": "auto"}, None),
        (2, {"global_batch": 512}, None),
    ],
)
def test_shares_that_are_too_small_to_fill_the_gpu(
    ranks: int, batches: dict[str, object], said: str | None, cuda: FakeCuda, sample_shards: Path
) -> None:
    given = [word for key, value in batches.items() for word in (f"--data.{key}", value)]
    text = told(sample_shards, ranks, "--data.image_size", 224, *given)
    assert (said or "") in text
    assert ("samples keep the GPU busy" in text) == (said is not None)


ENCODED_ONCE = ("--model.poster.frozen", "true", "--data.crop_scale", "[1, 1]", "--data.flip", "false")


@pytest.mark.parametrize(
    "changed",
    [("--model.poster.arch", "none", "--model.text.arch", "lstm"), ENCODED_ONCE],
    ids=["text only", "encoded once"],
)
def test_nothing_is_claimed_of_steps_that_are_no_convolutional_network_in_eager_mode(
    changed: tuple[str, ...], cuda: FakeCuda, sample_shards: Path
) -> None:
    assert "keep the GPU busy" not in told(sample_shards, 8, "--data.global_batch", 64, *changed)


def test_nothing_is_claimed_of_what_is_compiled(
    cuda: FakeCuda, sample_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "choose_compiling", lambda *_: Choice(True))
    assert "keep the GPU busy" not in told(sample_shards, 8, "--data.global_batch", 64, "--data.image_size", 224)


def test_on_a_cpu_nothing_is_said_of_gpus(sample_shards: Path) -> None:
    assert "GPU" not in told(sample_shards, 8, "--data.global_batch", 64)


def test_deepspeeds_buffer_is_counted_as_its_file_has_it(sample_shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"reduce_bucket_size": 268435456}}')
    zero = ("--parallel.strategy", "zero2", "--parallel.deepspeed_config", file)
    assert "extra 1.00 GB" in told(sample_shards, 2, "--data.global_batch", 64, *zero)
