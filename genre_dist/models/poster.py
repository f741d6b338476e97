"""The image encoder: a vision network without its classifier, its weights, and its frozen modules."""

import contextlib
import http.client
import importlib
import pickle
import socket
import warnings
from pathlib import Path
from typing import Self

import torch
import torchvision
from torch import Tensor, nn

from genre_dist.config import PosterConfig
from genre_dist.config.model import TIMM
from genre_dist.config.rules import nearest
from genre_dist.models.batchnorm import synchronise_batch_norm
from genre_dist.models.frozen_modules import freeze_through
from genre_dist.models.timm_network import timm_network
from genre_dist.models.weights import State, load_poster, load_state, poster_state

DOWNLOAD_TIMEOUT_SECONDS = 20  # a firewalled node must fail, not hang
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # training heads in the files of inception_v3 and googlenet


class PosterEncoder(nn.Module):
    """Image -> encoding [encoding_size]: a torchvision or timm classifier without its last layer, or a callable's
    network.

    `weights_used` is 'imagenet', 'random', 'file:PATH', 'callable', or 'not loaded' (`load_weights=False`, for ranks
    that receive rank 0's weights). Raises ValueError for an unknown network or module, for weights that are
    unreachable, unreadable or of another architecture, and for a network that does not take images of `image_size`.
    """

    def __init__(self, config: PosterConfig, image_size: int, load_weights: bool = True) -> None:
        super().__init__()
        self.frozen = config.frozen
        if config.arch.startswith(TIMM):
            self.network, self.weights_used = timm_network(config, image_size, load_weights)
            self.encoding_size = _probe_size(self.network, config.arch, image_size)
        else:
            if config.code is not None:
                self.network = _call_factory(config.arch)
                self.encoding_size = _probe_size(self.network, config.arch, image_size)
                classifier = ""
            else:
                self.network = _torchvision_network(config.arch, image_size)
                self.encoding_size, classifier = _remove_classifier(self.network)
            self.weights_used = _load(self.network, config, classifier) if load_weights else "not loaded"
        if config.batch_norm == "sync":
            synchronise_batch_norm(self.network)
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._still_norms = tuple(norms if config.batch_norm == "eval" else ())  # a tuple hides them from nn.Module
        self.freeze(config.frozen, config.frozen_through)
        self.train()

    def freeze(self, everything: bool, through: str | None) -> None:
        """Freeze the encoder, or only up to and including a module; the rest trains from the next `train()` on.

        Raises ValueError if the network has no such module.
        """
        self.frozen = everything
        self.network.requires_grad_(not everything)
        key = "model.poster.frozen_through"
        still = [] if everything or through is None else freeze_through(self.network, through, key)
        self._still = (*still, *self._still_norms)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, except that frozen modules stay in eval mode."""
        super().train(mode and not self.frozen)
        for module in self._still:
            module.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [B, 3, S, S] to encodings [B, encoding_size]."""
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            features = self.network(images)  # [B, D] or [B, D, h, w]
            return features.mean((2, 3)) if features.dim() == 4 else features


# --- the network


def _torchvision_network(arch: str, image_size: int) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if arch not in names:
        raise ValueError(f"model.poster.arch={arch} is no torchvision classifier; {nearest(arch, names)}")
    options: dict[str, object] = {}
    if arch in ("googlenet", "inception_v3"):  # these two expect [-1, 1] and convert from ImageNet's mean and std
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    elif arch.startswith("vit_"):
        options = {"image_size": image_size}
    elif arch.startswith("maxvit_"):
        options = {"input_size": (image_size, image_size)}
    try:
        return torchvision.models.get_model(arch, weights=None, **options)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"model.poster.arch={arch} cannot take data.image_size={image_size}: {error}") from error


def _remove_classifier(network: nn.Module) -> tuple[int, str]:
    """Replace the last Linear (else the last Conv2d) by Identity; return its input width and name."""
    modules = list(network.named_modules())
    linears = [(name, m) for name, m in modules if isinstance(m, nn.Linear)]
    name, last = linears[-1] if linears else [(name, m) for name, m in modules if isinstance(m, nn.Conv2d)][-1]
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return (last.in_features if isinstance(last, nn.Linear) else last.in_channels), name


def _call_factory(arch: str) -> nn.Module:
    module_name, _, function = arch.partition(":")
    try:
        network = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"model.poster.arch={arch} cannot be imported and called: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model.poster.arch={arch} must return a torch.nn.Module, not {type(network).__name__}")
    return network


@torch.no_grad()
def _probe_size(network: nn.Module, arch: str, image_size: int) -> int:
    try:
        features = network.eval()(torch.zeros(1, 3, image_size, image_size))
    except RuntimeError as error:
        raise ValueError(f"model.poster.arch={arch} cannot take data.image_size={image_size}: {error}") from error
    if not isinstance(features, Tensor) or features.dim() not in (2, 4):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"model.poster.arch={arch} must map [B, 3, S, S] to [B, D] or [B, D, h, w], got {shape}")
    return features.shape[1]


# --- weights


def _load(network: nn.Module, config: PosterConfig, classifier: str) -> str:
    """Load the configured weights; return `weights_used`."""
    weights, arch = config.weights, config.arch
    if weights == "imagenet" and not classifier:
        raise ValueError(f"model.poster.weights=imagenet needs a torchvision network; for {arch} use auto or a file")
    if weights not in ("auto", "none", "imagenet"):
        dropped = (*AUXILIARY, f"{classifier}.") if classifier else ()
        load_poster(network, config, dropped)
        return f"file:{weights}"
    if not classifier:
        return "callable"
    if weights == "none":
        return "random"
    try:
        state = _imagenet_state(arch)
    except ValueError as error:
        if weights == "imagenet":
            raise
        warnings.warn(f"training the image encoder from random weights: {error}", stacklevel=3)
        return "random"
    load_state(network, poster_state(state, (*AUXILIARY, f"{classifier}.")), "the file of ImageNet weights", arch)
    return "imagenet"


def _imagenet_state(arch: str) -> State:
    weights = torchvision.models.get_model_weights(arch).DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        return weights.get_state_dict(check_hash=True, progress=False, map_location="cpu", weights_only=True)
    except (OSError, http.client.HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        name = weights.url.rpartition("/")[2]
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"ImageNet weights of {arch} are out of reach or damaged ({reason}): put a good copy of {name} into "
            f"{folder}, or pass --model.poster.weights FILE, or --model.poster.weights none to start from random ones"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
