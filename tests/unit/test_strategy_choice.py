"""Which strategy runs with which settings: what cannot be is one line before anything starts."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import options
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.config import Config, DataConfig, ModelConfig, ParallelConfig, PosterConfig, derive_batches
from genre_dist.models.classifier import GenreClassifier
from genre_dist.parallel.deepspeed_config import FROM_CONFIG, bucket_bytes, engine_config
from genre_dist.parallel.sharded import units
from genre_dist.parallel.strategies import check_strategy, strategy_name
from genre_dist.parallel.tensors import divide
from genre_dist.planner.memory import ZERO_BUCKET_BYTES
from genre_dist.train import main

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "deepspeed").glob("*.json"))


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect exit code 2, and return the one line on stderr."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def parallel(**settings: object) -> Config:
    return Config(parallel=ParallelConfig(**settings))  # type: ignore[arg-type]


# --- refused


@pytest.mark.parametrize("dry", [False, True])
def test_zero_without_deepspeed_names_both_ways_out(
    dry: bool,
    sample_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as if it were not installed
    arguments = options(sample_shards, tmp_path / "run", "--parallel.strategy", "zero2")
    line = fails([*arguments, *["--dry_run"] * dry], capsys)
    assert "zero2 needs DeepSpeed" in line
    assert "pip install" in line
    assert "fsdp" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--parallel.strategy", "fsdp", "--parallel.offload_optimizer", "true"], "offload_optimizer is DeepSpeed's"),
        (["--parallel.deepspeed_config", "some.json"], "deepspeed_config is DeepSpeed's"),
        (["--parallel.strategy", "zero1", "--parallel.compress_gradients", "true"], "communication_data_type"),
        (["--parallel.strategy", "zero3", "--parallel.deepspeed_config", "no.json"], "no.json cannot be read"),
        (["--parallel.strategy", "zero4"], "zero4"),
        (["--parallel.strategy", "fsdp", "--optim.optimizer", "adamw8bit"], "adamw8bit needs whole parameters"),
        (["--parallel.strategy", "zero3", "--model.heads.kernel", "batched"], "heads.kernel=batched with zero3"),
        (["--parallel.strategy", "zero3", "--train.compile", "true"], "train.compile=true with zero3"),
        (["--train.precision", "fp16"], "fp16"),
    ],
)
def test_a_flag_that_the_strategy_cannot_follow(
    flags: list[str], told: str, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in fails([*options(sample_shards, tmp_path / "run"), *flags], capsys)
    assert not (tmp_path / "run").exists()


def test_fp16_is_answered_with_what_there_is(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(options(sample_shards, tmp_path / "run", "--train.precision", "fp16"), capsys)
    assert "bf16" in line
    assert "fp32" in line


@pytest.mark.parametrize("key", FROM_CONFIG)
def test_what_we_compute_deepspeeds_file_may_not_say_again(key: str, tmp_path: Path) -> None:
    section, _, inner = key.partition(".")
    (tmp_path / "ds.json").write_text(json.dumps({section: {inner: 1} if inner else 1}))
    with pytest.raises(ValueError, match=f"{key} follows from") as caught:
        check_strategy(parallel(strategy="zero2", deepspeed_config=str(tmp_path / "ds.json")), 2)
    assert str(tmp_path / "ds.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "expected an object"),
        ('{"zero_optimization": 2}', "expected an object"),
        ('{"compression_training": {}}', "compression_training would change more"),
    ],
)
def test_a_file_that_is_no_settings_of_deepspeed(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        check_strategy(parallel(strategy="zero2", deepspeed_config=str(tmp_path / "ds.json")), 2)


# --- chosen


def test_auto_is_single_on_one_rank_and_ddp_on_several() -> None:
    assert [strategy_name(Config(), world) for world in (1, 2, 64)] == ["single", "ddp", "ddp"]
    assert strategy_name(parallel(strategy="zero3"), 1) == "zero3"


# --- DeepSpeed's configuration


def test_deepspeeds_configuration_follows_from_ours() -> None:
    config = replace(parallel(strategy="zero2"), data=DataConfig(global_batch=48, micro_batch=4))
    settings = engine_config(config, derive_batches(config.data, 3), "bf16", pin_memory=False)
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [settings[key] for key in sizes] == [48, 4, 4]
    assert settings["gradient_clipping"] == config.optim.clip_norm
    assert settings["zero_optimization"]["stage"] == 2
    assert "offload_optimizer" not in settings["zero_optimization"]
    assert 4 * settings["zero_optimization"]["reduce_bucket_size"] == bucket_bytes(config) == ZERO_BUCKET_BYTES
    assert settings["torch_autocast"]["enabled"]
    assert "bf16" not in settings  # weights stay fp32
    fp32 = engine_config(config, derive_batches(config.data, 3), "fp32", pin_memory=False)
    assert "torch_autocast" not in fp32


def test_a_file_is_laid_over_it(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"reduce_bucket_size": 7}, "steps_per_print": 5}')
    config = parallel(strategy="zero3", offload_optimizer=True, deepspeed_config=str(tmp_path / "ds.json"))
    settings = engine_config(config, derive_batches(config.data, 1), "fp32", pin_memory=True)
    assert settings["zero_optimization"]["reduce_bucket_size"] == 7
    assert bucket_bytes(config) == 28  # what the planner counts
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert settings["steps_per_print"] == 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_deepspeed_accepts_the_files_that_are_shipped(path: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for strategy in ("zero1", "zero2", "zero3"):
        config = parallel(strategy=strategy, deepspeed_config=str(path))
        check_strategy(config, 2)
        settings = engine_config(config, derive_batches(config.data, 2), "fp32", pin_memory=False)
        zero = DeepSpeedZeroConfig(**settings["zero_optimization"])
        assert zero.reduce_bucket_size == json.loads(path.read_text())["zero_optimization"]["reduce_bucket_size"]


# --- FSDP's units


@pytest.mark.parametrize(
    ("arch", "pieces"),
    [
        ("resnet152", ["layer2", "layer3", "layer4"]),  # stem and first stage hold less than a hundredth
        ("vgg16", None),
        ("efficientnet_b0", None),
        ("maxvit_t", None),
        ("vit_b_16", None),
        ("densenet121", None),
    ],
)
def test_every_parameter_is_in_a_unit_and_networks_are_cut_where_they_are_called(
    arch: str, pieces: list[str] | None
) -> None:
    config = ModelConfig(poster=PosterConfig(arch=arch, weights="none"))
    with torch.device("meta"):
        model = GenreClassifier(config, 19, 224, 50, None, load_weights=False)
    found = list(units(model))
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(part)] for part in found if "." not in names[id(part)]] == ["text", "poster", "heads"]
    assert all(type(part).forward is not torch.nn.Module.forward for part in found)  # else nobody ever calls them
    owned = {id(parameter) for part in found for parameter in part.parameters()}
    assert owned == {id(parameter) for parameter in model.parameters()}
    cut = [names[id(part)].removeprefix("poster.network.") for part in found if "poster." in names[id(part)]]
    assert pieces is None or cut == pieces
    assert cut or arch == "vit_b_16"


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1000), max_size=30), st.integers(1, 8))
def test_what_is_saved_is_divided_about_evenly(sizes: dict[str, int], ranks: int) -> None:
    owners = divide(sizes, ranks)
    assert owners.keys() == sizes.keys()
    loads = [sum(size for name, size in sizes.items() if owners[name] == rank) for rank in range(ranks)]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)
