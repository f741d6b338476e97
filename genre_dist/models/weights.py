"""Weights in files: state dicts, read without running code and copied only where all names and shapes agree."""

import contextlib
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from genre_dist.config import PosterConfig

State = dict[str, Tensor]


def read_state(file: str, key: str) -> State:
    """Read the tensors of a .safetensors, .pth or .pt file; no pickled code is run.

    Raises ValueError that names the config `key` and the file if it is missing, unreadable or not a state dict.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{key}={file}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in (".pth", ".pt"):
            raise ValueError("expected a .safetensors, .pth or .pt file")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{key}={file} cannot be read: {str(error).partition(chr(10))[0]}") from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{key}={file} holds no state dict; save one with torch.save(network.state_dict(), FILE)")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def load_poster(network: nn.Module, config: PosterConfig, dropped: tuple[str, ...]) -> None:
    """Load the file of `model.poster.weights` into an image network, without the tensors named `dropped...`.

    Raises ValueError as `read_state` and `load_state` do.
    """
    file = config.weights
    state = poster_state(read_state(file, "model.poster.weights"), dropped)
    load_state(network, state, f"model.poster.weights={file}", config.arch)


def poster_state(state: State, dropped: tuple[str, ...]) -> State:
    """Map the tensor names of any file to an image network's own, without its classifier."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    run_prefix = "poster.network."
    if any(name.startswith(run_prefix) for name in state):
        state = {name.removeprefix(run_prefix): v for name, v in state.items() if name.startswith(run_prefix)}
    # DenseNet's files have norm.1 where its modules are called norm1
    state = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name): v for name, v in state.items()}
    return {name: value for name, value in state.items() if not name.startswith(dropped)}


def load_state(network: nn.Module, state: State, file: str, what: str, suspect: str = "architecture") -> None:
    """Copy `state` into `network`, key by key; raise ValueError that names the file unless all names and shapes agree.

    The error names `what` does not fit and the `suspect`, the property that probably differs. Old modules'
    `load_state_dict` refuses files without version metadata (safetensors), so this function copies single tensors.
    """
    if isinstance(network, VisionTransformer):
        with contextlib.suppress(ValueError, KeyError):  # the check below reports a file of no ViT
            state = interpolate_embeddings(network.image_size, network.patch_size, state)
    own = network.state_dict()
    counters = "num_batches_tracked"  # absent from old files
    missing = [name for name in own if name not in state and not name.endswith(counters)]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{kind} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise ValueError(f"{file} does not fit {what}, it seems to be of another {suspect}: {'; '.join(problems)}")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
