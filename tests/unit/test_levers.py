"""Settings that change what training costs, not what it computes."""

import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import losses, options, rows, tensors_of

from genre_dist.config import OptimConfig, TrainConfig
from genre_dist.models.levers import without_effect
from genre_dist.train import main

pytestmark = pytest.mark.slow

# BatchNorm looks at no batch: otherwise the size of a micro-batch would be part of the result
RUN = (
    *("--model.poster.arch", "helpers:small_resnet", "--model.poster.batch_norm", "eval"),
    *("--data.global_batch", 8, "--data.micro_batch", 4, "--train.steps", 4, "--train.channels_last", "false"),
    *("--optim.warmup_steps", 0, "--run.seed", 1, "--data.workers", 0),
)


@pytest.fixture(scope="module")
def plain(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with no lever pulled."""
    run = tmp_path_factory.mktemp("levers") / "plain"
    assert main(options(sample_shards, run, *RUN)) == 0
    return run


@pytest.mark.parametrize(
    "lever",
    [
        ("--train.activation_checkpointing", "blocks"),
        ("--train.activation_checkpointing", "selective", "--train.channels_last", "true"),
        ("--train.compile", "true", "--data.micro_batch", 8),
    ],
    ids=["blocks", "selective, channels_last", "compile, micro-batch"],
)
def test_a_run_has_the_same_losses(
    lever: tuple[object, ...], plain: Path, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(sample_shards, tmp_path / "run", *RUN, *lever)) == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), rel=1e-4)
    assert rows(tmp_path / "run", "val")[0]["loss"] == pytest.approx(rows(plain, "val")[0]["loss"], rel=1e-3)
    # a compiler gains nothing without a GPU
    assert ("train.compile is left out" in capsys.readouterr().out) == ("--train.compile" in lever)


def test_on_a_gpu_nothing_is_left_out() -> None:
    assert without_effect(TrainConfig(compile=True, memory_snapshot=True), torch.device("cuda")) == []


def test_recomputing_without_a_poster_encoder_is_refused(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(sample_shards, tmp_path / "run", "--train.activation_checkpointing", "stages")
    assert main([*arguments, "--model.poster.arch", "none"]) == 2
    assert "the model has no image encoder" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_8_bits_learn_as_32_do_and_a_continued_run_goes_on_as_if_it_had_not_stopped(
    plain: Path, sample_shards: Path, tmp_path: Path
) -> None:
    wide = ("--model.text.hidden", 64, "--optim.optimizer", "adamw8bit")  # it leaves small weights in 32 bits
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(options(sample_shards, whole, *RUN, *wide, "--optim.schedule", "constant")) == 0
    for steps in (2, 4):
        more = ("--optim.schedule", "constant", "--train.steps", steps)
        assert main(options(sample_shards, parts, *RUN, *wide, *more)) == 0
    assert losses(parts) == losses(whole)
    stored = tensors_of(whole / "checkpoints" / "step-00000004")
    assert stored["optimizer.text.rnn.weight_hh_l0.state1"].dtype == torch.uint8


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_8_bits_without_the_library_name_it(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert OptimConfig(optimizer="adamw8bit")
    assert main(options(sample_shards, tmp_path / "run", "--optim.optimizer", "adamw8bit")) == 2
    assert "pip install 'genre_dist[8bit]'" in capsys.readouterr().err
