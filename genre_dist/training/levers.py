"""Settings that change what training costs, not what it computes: memory format, recomputation, compilation, 8 bits."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from genre_dist.config import OptimConfig, TrainConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.recompute import recompute_activations, regions


def pull_levers(model: GenreClassifier, train: TrainConfig, device: torch.device) -> None:
    """Prepare a model for training as configured.

    Raises ValueError if its poster encoder cannot do what is asked, or there is none.
    """
    if train.channels_last:
        model.to(memory_format=torch.channels_last)
    kind, network = train.activation_checkpointing, None if model.poster is None else model.poster.network
    if network is None:
        if kind != "none":
            raise ValueError(f"train.activation_checkpointing={kind}: the model has no poster encoder; set it to none")
        return
    if train.compile and device.type == "cuda":
        compile_network(network, train)
    recompute_activations(network, kind)


def compile_network(network: nn.Module, train: TrainConfig, backend: str = "inductor") -> None:
    """Compile a network as a whole, or block by block where blocks are computed again.

    The compiler must not see into the recomputation: it would fold BatchNorm's statistics into it.
    """
    kind = train.activation_checkpointing
    for part in [network] if kind == "none" else regions(network, "blocks" if kind == "selective" else kind):
        part.forward = torch.compile(part.forward, backend=backend)


def without_effect(train: TrainConfig, device: torch.device) -> list[str]:
    """A line for each setting that is for GPUs and does nothing on this device."""
    if device.type == "cuda":
        return []
    reasons = {
        "compile": f"on a {device.type} it gains nothing",
        "memory_snapshot": f"it shows what fills a GPU's memory, and this is a {device.type}",
    }
    return [f"train.{name} is left out: {reason}" for name, reason in reasons.items() if getattr(train, name)]


def adamw(groups: list[dict[str, Any]], optim: OptimConfig) -> Optimizer:
    """AdamW, with averages in 32 or 8 bits. Raises ValueError if the library for 8 bits is missing."""
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=optim.betas, fused=True)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "optim.optimizer=adamw8bit needs bitsandbytes, which is not installed: pip install 'genre_dist[8bit]', or "
            "set it to adamw"
        )
    from bitsandbytes.optim import AdamW8bit

    optimizer = AdamW8bit(groups, betas=optim.betas)
    # its own version hides the 8-bit averages in a dict inside the dict, which checkpoints do not look into
    optimizer.state_dict = partial(torch.optim.Optimizer.state_dict, optimizer)
    # it counts steps as plain numbers, and checkpoints hold tensors only
    optimizer.register_state_dict_post_hook(partial(_convert_steps, to=torch.tensor))
    optimizer.register_load_state_dict_pre_hook(partial(_convert_steps, to=int))
    return optimizer


def _convert_steps(_: Optimizer, state: dict[str, Any], to: Callable[[Any], Any]) -> dict[str, Any]:
    steps = {number: {**values, "step": to(values["step"])} for number, values in state["state"].items()}
    return state | {"state": steps}
