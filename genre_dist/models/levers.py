"""Settings that change the cost of training, not its results: memory format, recomputation, compiling, CUDA graphs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from genre_dist.config import Config, TrainConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.cuda_graph import graph_passes
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.models.recompute import blocks, recompute_activations, recompute_layers

COMPILE_FROM_STEPS = 500
"""Shortest run in steps for which compilation may pay off."""
COMPILED_VARIANTS = 64
"""Limit of compiled shapes and modes of a block; torch's default is 8, and ResNet152 has 8 in training alone."""


class Choice(NamedTuple):
    """A setting resolved for a run, and the reason; no reason if the setting does not apply."""

    wanted: bool
    why: str = ""


def choose_compiling(config: Config, device: torch.device, steps: int) -> Choice:
    """Resolve `train.compile` for a run of `steps` steps. Without a compiler the model runs uncompiled."""
    train, poster = config.train, config.model.poster
    if train.compile is False or device.type != "cuda" or not config.model.uses_poster:
        return Choice(False)
    reasons = {
        "without train.cuda_graph compiled blocks keep the GPU waiting for the host": not train.cuda_graph,
        f"the run has {steps} steps, and compiling takes as long as some {COMPILE_FROM_STEPS}": steps
        < COMPILE_FROM_STEPS,
        "encoders are frozen and run once": train.cache_encodings != "off" and config.why_not_encoded_once is None,
        f"train.activation_checkpointing={train.activation_checkpointing}": train.activation_checkpointing != "none",
        "ranks exchange BatchNorm's statistics inside the blocks": poster.batch_norm == "sync",
        "zero3 takes weights away inside the blocks": config.parallel.strategy == "zero3",
    }
    against = next((reason for reason, holds in reasons.items() if holds), None)
    if train.compile == "auto" and against is not None:
        return Choice(False, f"train.compile=auto: off, {against}")
    if problem := _why_not_compiling(device):
        return Choice(False, f"train.compile={train.compile} is left out: no compiler works here ({problem})")
    return Choice(True, f"train.compile={train.compile}: on, the image encoder's blocks, for {steps:,} steps")


def choose_cuda_graph(config: Config, device: torch.device, strategy: str) -> Choice:
    """Resolve `train.cuda_graph` for a run by a strategy; where it cannot work it is off."""
    train, poster = config.train, config.model.poster
    if not train.cuda_graph or device.type != "cuda" or not config.model.uses_poster or poster.frozen:
        return Choice(False)
    reasons = {
        f"{strategy} moves the weights": strategy not in ("single", "ddp"),
        f"train.activation_checkpointing={train.activation_checkpointing}": train.activation_checkpointing != "none",
        "ranks exchange BatchNorm's statistics in the pass": poster.batch_norm == "sync",
    }
    against = next((reason for reason, holds in reasons.items() if holds), None)
    if against is not None:
        return Choice(False, f"train.cuda_graph={train.cuda_graph} is left out: {against}")
    return Choice(True, f"train.cuda_graph={train.cuda_graph}: on, from the third step")


def _why_not_compiling(device: torch.device) -> str | None:
    """The reason why torch.compile fails on a device, found by a trial; it needs Triton and a C compiler."""
    try:
        torch.compile(lambda numbers: numbers * 2 + 1)(torch.zeros(8, device=device))
    except Exception as error:  # a compiler, Triton or a subprocess may raise anything
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def pull_levers(model: GenreClassifier, train: TrainConfig, device: torch.device) -> None:
    """Apply these settings to a model; `compile` must be resolved, as `auto` counts as off.

    Raises ValueError if the image encoder does not support a setting, or is missing.
    """
    if train.channels_last:
        model.to(memory_format=torch.channels_last)
    kind = train.activation_checkpointing
    transformers = [encoder for encoder in model.text_encoders.values() if isinstance(encoder, PretrainedText)]
    if kind != "none" and not model.image_encoders and not transformers:
        raise ValueError(f"train.activation_checkpointing={kind}: the model has no image encoder; set it to none")
    for transformer in transformers:
        recompute_layers(transformer, kind)
    for encoder in model.image_encoders.values():
        if train.compile is True and device.type == "cuda":
            compile_blocks(encoder.network)
        recompute_activations(encoder.network, kind)
        if train.cuda_graph and device.type == "cuda":
            graph_passes(encoder.network)


def compile_blocks(network: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile a network's repeated blocks, or a network without blocks as a whole.

    Equal blocks share compiled code: ResNet152's 50 blocks are of 8 kinds. Each batch size is compiled separately.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
    for part in list(blocks(network)) or [network]:
        part.forward = torch.compile(part.forward, backend=backend, dynamic=False)


def without_effect(train: TrainConfig, device: torch.device) -> list[str]:
    """A line for each GPU setting that has no effect on this device."""
    if device.type == "cuda":
        return []
    reasons = {
        "compile": f"on a {device.type} it gains nothing",
        "cuda_graph": f"this is a {device.type}",
        "memory_snapshot": f"it shows what fills a GPU's memory, and this is a {device.type}",
    }
    return [f"train.{name} is left out: {reason}" for name, reason in reasons.items() if getattr(train, name) is True]
