"""Floating-point work of a training sample, and the peaks it is compared with."""

import pytest
import torch

from genre_dist.config import Config, DataConfig, HeadsConfig, ModelConfig, PosterConfig, TextConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.text import TextEncoder
from genre_dist.planner.throughput import peak_flops, training_flops

CPU = torch.device("cpu")


def counted(text: TextConfig, poster: PosterConfig) -> float:
    config = Config(model=ModelConfig(text=text, poster=poster))
    with torch.device("meta"):
        model = GenreClassifier(config.model, 19, 224, 100, None, load_weights=False)
        for encoder in model.text_encoders.values():
            assert isinstance(encoder, TextEncoder)
            encoder.embedding = torch.nn.Embedding(100, 300).requires_grad_(False)  # frozen word vectors
    return training_flops(model, config, torch.device("meta"))


@pytest.mark.slow
def test_the_studys_model_takes_74_gigaflops_a_sample() -> None:
    """An independent count: ResNet152 68.833, LSTM 5.250 less 0.135 with frozen word vectors, 19 heads 0.418."""
    resnet = PosterConfig(arch="resnet152", weights="none")
    whole = counted(TextConfig(), resnet)
    assert whole == pytest.approx(74.502e9 - 0.135e9, rel=1e-3)
    frozen = counted(TextConfig(frozen=True), PosterConfig(arch="resnet152", weights="none", frozen=True))
    heads_without_input = 3 * 0.13948e9 - 2 * 19 * 3072 * 1024
    assert frozen == pytest.approx(23.023e9 + 1.750e9 + heads_without_input, rel=1e-3)


def test_nothing_stays_behind_in_the_model() -> None:
    small = ModelConfig(poster=PosterConfig(arch="resnet18", weights="none"), heads=HeadsConfig(hidden=(8,)))
    config = Config(model=small, data=DataConfig(image_size=64))
    model = GenreClassifier(config.model, 19, 64, 100, None, load_weights=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert training_flops(model, config, CPU) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 0),  # a slice has not the whole card's peak
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 0),
        ("NVIDIA RTX A4000", 0),  # no A40
        ("Unheard Of 1", 0),
    ],
)
def test_a_peak_is_known_or_zero(name: str, tera: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), "bf16") == tera * 1e12
    assert peak_flops(CPU, "bf16") == 0


@pytest.mark.parametrize(
    ("name", "precision", "tf32_allowed", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "fp32", True, 156),
        ("NVIDIA A100-SXM4-80GB", "fp32", False, 19.5),
        ("NVIDIA A100-SXM4-80GB", "tf32", False, 156),
        ("Tesla V100-SXM2-16GB", "fp32", True, 15.7),  # it has no TF32
        ("NVIDIA GeForce RTX 4090", "fp32", True, 82.6),
    ],
)
def test_the_peak_of_fp32_is_that_of_tf32_where_convolutions_use_it(
    name: str, precision: str, tf32_allowed: bool, tera: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32_allowed)
    assert peak_flops(torch.device("cuda"), precision) == pytest.approx(tera * 1e12)
