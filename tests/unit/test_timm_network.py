"""Image networks of timm: names, sizes, weights, freezing, and what training asks of an image encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, options
from safetensors.torch import save_file

from genre_dist.config import PosterConfig
from genre_dist.config.files import parse_config
from genre_dist.config.trust import refuse_foreign_code
from genre_dist.inference.trained_model import load_run
from genre_dist.models.poster import PosterEncoder
from genre_dist.models.recompute import recompute_activations
from genre_dist.planner.planned_model import plan_model
from genre_dist.train import main

timm = pytest.importorskip("timm")
TEST_RESNET, TEST_VIT = "timm:test_resnet", "timm:test_vit"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights are in reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    torch.manual_seed(0)


def encoder_of(arch: str, size: int = 64, load_weights: bool = True, **settings: Any) -> PosterEncoder:
    return PosterEncoder(PosterConfig(arch=arch, **{"weights": "none"} | settings), size, load_weights)


@pytest.mark.parametrize("arch", [TEST_RESNET, TEST_VIT])
@pytest.mark.parametrize("size", [64, 96])
def test_a_network_encodes_images_of_any_size_that_it_takes(arch: str, size: int) -> None:
    encoder = encoder_of(arch, size)
    images = torch.randn(2, 3, size, size)
    assert encoder(images).shape == (2, encoder.encoding_size)
    assert encoder.weights_used == "random"
    bare = timm.create_model(arch.removeprefix("timm:"), num_classes=0)
    assert sum(p.numel() for p in encoder.network.parameters()) == pytest.approx(
        sum(p.numel() for p in bare.parameters()), rel=0.2
    )


def test_encodings_are_timms_own() -> None:
    encoder = encoder_of(TEST_RESNET).eval()
    bare = timm.create_model("test_resnet", num_classes=0).eval()
    bare.load_state_dict(encoder.network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(images), bare(images))


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"timm:test_resnett is no network of timm; nearest: test_resnet"):
        encoder_of("timm:test_resnett")


def test_weights_out_of_reach_are_an_error_or_a_warning() -> None:
    with pytest.raises(ValueError, match=r"timm's weights of test_resnet are out of reach .*Hugging Face cache"):
        encoder_of(TEST_RESNET, weights="imagenet")
    with pytest.warns(UserWarning, match="from random weights: timm's weights of test_resnet are out of reach"):
        assert encoder_of(TEST_RESNET, weights="auto").weights_used == "random"
    assert encoder_of(TEST_RESNET, load_weights=False, weights="imagenet").weights_used == "not loaded"


def test_weights_are_read_from_timms_files_and_from_runs(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet", num_classes=10)
    save_file(whole.state_dict(), tmp_path / "timm.safetensors")
    run = {f"poster.network.{name}": tensor for name, tensor in encoder_of(TEST_RESNET).network.state_dict().items()}
    save_file(run, tmp_path / "model.safetensors")
    for file, state, prefix in (("timm", whole.state_dict(), ""), ("model", run, "poster.network.")):
        encoder = encoder_of(TEST_RESNET, weights=str(tmp_path / f"{file}.safetensors"))
        assert encoder.weights_used == f"file:{tmp_path / file}.safetensors"
        assert all(torch.equal(v, state[prefix + name]) for name, v in encoder.network.state_dict().items())
    with pytest.raises(ValueError, match="does not fit timm:test_vit"):
        encoder_of(TEST_VIT, weights=str(tmp_path / "timm.safetensors"))


def test_modules_freeze_and_statistics_stay() -> None:
    encoder = encoder_of(TEST_RESNET, frozen_through="layer2", batch_norm="eval")
    trained = {name.split(".")[0] for name, parameter in encoder.network.named_parameters() if parameter.requires_grad}
    assert trained == {"layer3", "layer4"}
    before = {name: buffer.clone() for name, buffer in encoder.network.named_buffers()}
    encoder(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in encoder.network.named_buffers())


@pytest.mark.parametrize("arch", [TEST_RESNET, TEST_VIT])
def test_its_blocks_are_recomputed(arch: str) -> None:
    kept, again = encoder_of(arch), encoder_of(arch)
    again.load_state_dict(kept.state_dict())
    recompute_activations(again.network, "blocks")
    images = torch.randn(4, 3, 64, 64)
    for encoder in (kept, again):
        encoder(images).square().sum().backward()
    for name, parameter in kept.named_parameters():
        torch.testing.assert_close(again.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=1e-4)
    for name, buffer in kept.named_buffers():
        torch.testing.assert_close(again.get_buffer(name), buffer)


def test_a_run_trains_it_is_planned_and_comes_back_without_trust(sample_shards: Path, tmp_path: Path) -> None:
    arguments = options(sample_shards, tmp_path / "run", "--model.poster.arch", TEST_RESNET, "--data.image_size", 64)
    assert main([*arguments, "--data.global_batch", "32", "--train.steps", "2"]) == 0
    assert list(load_run(tmp_path / "run", torch.device("cpu")).model.image_encoders) == ["poster"]
    planned = plan_model(parse_config(arguments).config, ("none", "blocks"))
    assert set(planned.traces) == {"none", "blocks"}


def test_its_name_is_no_foreign_code(tmp_path: Path) -> None:
    refuse_foreign_code(parse_config([*TINY, "--model.poster.arch", TEST_RESNET]).config, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="names code to be run"):
        refuse_foreign_code(parse_config([*TINY, "--model.poster.arch", "timmy:net"]).config, tmp_path / "config.yaml")
