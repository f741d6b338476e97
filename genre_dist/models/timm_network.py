"""Image networks of the timm library, without their classifier."""

import http.client
import warnings
from typing import Any

from torch import nn

from genre_dist.config import PosterConfig
from genre_dist.config.model import TIMM
from genre_dist.config.rules import nearest
from genre_dist.models.weights import load_poster

LEFT_OUT = "img_size"
"""The argument for the images' side, which networks for any size do not have."""


def timm_network(config: PosterConfig, image_size: int, load_weights: bool = True) -> tuple[nn.Module, str]:
    """The network of `model.poster.arch timm:NAME`, and what its weights are: 'imagenet' for timm's pretrained ones,
    'random', 'file:PATH' or 'not loaded'.

    Raises ValueError if timm is missing, for an unknown name, for a size that the network does not take, and for
    weights that are out of reach or of another architecture.
    """
    name = config.arch.removeprefix(TIMM)
    library = _library(config.arch)
    if not library.is_model(name):
        raise ValueError(
            f"model.poster.arch={config.arch} is no network of timm; {nearest(name, library.list_models())}"
        )
    network = _create(library, name, image_size, pretrained=False)
    if not load_weights:
        return network, "not loaded"
    if config.weights == "none":
        return network, "random"
    if config.weights not in ("auto", "imagenet"):
        load_poster(network, config, _classifier(network))
        return network, f"file:{config.weights}"
    try:
        return _create(library, name, image_size, pretrained=True), "imagenet"
    except (OSError, http.client.HTTPException, RuntimeError, EOFError, ValueError) as error:
        problem = (
            f"timm's weights of {name} are out of reach ({_line(error)}): put them into the Hugging Face cache, pass "
            "--model.poster.weights FILE, or --model.poster.weights none to start from random ones"
        )
    if config.weights == "imagenet":
        raise ValueError(problem)
    warnings.warn(f"training the image encoder from random weights: {problem}", stacklevel=3)
    return network, "random"


def _library(arch: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError(
            f"model.poster.arch={arch} needs the timm library, which is not installed: pip install 'genre_dist[timm]'"
        ) from None
    return timm


def _create(library: Any, name: str, image_size: int, pretrained: bool) -> nn.Module:
    """The network for images of this size, where it must be told."""
    try:
        network = library.create_model(name, pretrained=pretrained, num_classes=0, img_size=image_size)
    except TypeError as error:
        if LEFT_OUT not in str(error):
            raise ValueError(f"model.poster.arch={TIMM}{name} cannot be made: {_line(error)}") from None
        network = library.create_model(name, pretrained=pretrained, num_classes=0)
    except AssertionError as error:
        raise ValueError(
            f"model.poster.arch={TIMM}{name} cannot take data.image_size={image_size}: {_line(error)}"
        ) from None
    assert isinstance(network, nn.Module)
    return network


def _classifier(network: Any) -> tuple[str, ...]:
    """What the classifier's tensors begin with in timm's own files."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
