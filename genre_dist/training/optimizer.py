"""The optimizer: AdamW over the trained parameters, with moments in 32 or 8 bits."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from genre_dist.config import Config, OptimConfig
from genre_dist.models.classifier import parameter_groups


def make_optimizer(model: nn.Module, config: Config) -> Optimizer:
    """AdamW over the trained parameters, each group with its peak rate. Raises ValueError if there are none."""
    groups = parameter_groups(model, config.optim)
    if not groups:
        raise ValueError("nothing to train: every part of the model is frozen")
    for group in groups:
        group["peak_lr"] = group["lr"]
    return adamw(groups, config.optim)


def adamw(groups: list[dict[str, Any]], optim: OptimConfig) -> Optimizer:
    """AdamW, with moments in 32 or 8 bits. Raises ValueError if the library for 8 bits is missing."""
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=optim.betas, fused=True)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "optim.optimizer=adamw8bit needs bitsandbytes, which is not installed: pip install 'genre_dist[8bit]', or "
            "set it to adamw"
        )
    from bitsandbytes.optim import AdamW8bit

    optimizer = AdamW8bit(groups, betas=optim.betas)
    # bitsandbytes' own version nests the 8-bit moments one dict deeper, where checkpoints do not look
    optimizer.state_dict = partial(torch.optim.Optimizer.state_dict, optimizer)
    # bitsandbytes counts steps as plain numbers, and checkpoints hold tensors only
    optimizer.register_state_dict_post_hook(partial(_convert_steps, to=torch.tensor))
    optimizer.register_load_state_dict_pre_hook(partial(_convert_steps, to=int))
    return optimizer


def _convert_steps(_: Optimizer, state: dict[str, Any], to: Callable[[Any], Any]) -> dict[str, Any]:
    steps = {number: {**values, "step": to(values["step"])} for number, values in state["state"].items()}
    return state | {"state": steps}
