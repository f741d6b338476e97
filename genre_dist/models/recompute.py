"""Activation checkpointing: parts of the image encoder keep only their inputs and run again in the backward pass.

The recomputation must repeat the first one without side effects. Torch repeats the draws of dropout. BatchNorm's
running statistics must not be updated twice, and a batch that passed in eval mode or uncounted must pass so again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from genre_dist.models.batchnorm import SynchronisedBatchNorm2d
from genre_dist.models.pretrained_text import PretrainedText

Kind = Literal["none", "stages", "blocks", "selective"]
Context = AbstractContextManager[Any]

_EXPENSIVE = [
    torch.ops.aten.convolution.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
]
"""Operations whose outputs `selective` keeps; norms and activations are cheap to recompute."""


def recompute_activations(network: nn.Module, kind: Kind) -> None:
    """Recompute the activations of a network's stages or blocks; `selective` keeps those of convolutions and products.

    Names, parameters and results stay the same. Raises ValueError for a network without blocks in `nn.Sequential`s.
    """
    if kind != "none":
        _recompute(regions(network, kind), kind)


def recompute_layers(encoder: PretrainedText, kind: Kind) -> None:
    """The same for a pretrained text encoder: its layers are its blocks and its stages."""
    if kind != "none":
        _recompute(encoder.layers(), kind)


def _recompute(parts: list[nn.Module], kind: Kind) -> None:
    for region in parts:
        if kind == "selective":
            for module in region.modules():
                if getattr(module, "inplace", False):
                    cast(Any, module).inplace = False  # kept outputs must not be overwritten
        norms = [module for module in region.modules() if isinstance(module, _BatchNorm)]
        region.forward = partial(_recomputed, region.forward, partial(_contexts, norms, kind == "selective"))


def regions(network: nn.Module, kind: Kind) -> list[nn.Module]:
    """The units of recomputation: blocks, or for `stages` the sequences of blocks.

    A block is a composed module in an `nn.Sequential`: a ResNet's bottlenecks, an EfficientNet's MBConvs, a ViT's
    encoder layers; of nested ones the outermost counts.
    """
    all_blocks = list(blocks(network))
    if not all_blocks:
        raise ValueError(
            f"train.activation_checkpointing={kind} finds no blocks in the image encoder (modules of several parts in "
            "an nn.Sequential, as ResNets, EfficientNets and ViTs have them); set it to none, or lower data.micro_batch"
        )
    if kind != "stages":
        return all_blocks
    inside = {id(block) for block in all_blocks}
    holders = [m for m in network.modules() if type(m) is nn.Sequential and any(id(c) in inside for c in m.children())]
    return [
        holder for holder in holders if not any(other in set(holder.modules()) for other in holders if other != holder)
    ]


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """A network's blocks, as defined in `regions`."""
    for child in module.children():
        composed = type(child) is not nn.Sequential and any(True for _ in child.children())
        if type(module) is nn.Sequential and composed:
            yield child
        else:
            yield from blocks(child)


def _recomputed(forward: Callable[..., Tensor], contexts: Callable[[], Any], *inputs: Any, **more: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs, **more)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **more)


class _NormState(NamedTuple):
    """State of a norm during the first computation."""

    norm: _BatchNorm
    training: bool
    counted: bool


def _contexts(
    norms: list[_BatchNorm], selective: bool
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts of the first computation and of the second; torch calls this before the first."""
    states = [_NormState(norm, norm.training, getattr(norm, "counted", True)) for norm in norms]
    if not selective:
        return nullcontext(), _repeated(states)
    keeping, reading = create_selective_checkpoint_contexts(_EXPENSIVE)
    return keeping, _repeated(states, reading)


@contextmanager
def _repeated(states: list[_NormState], inner: Context | None = None) -> Iterator[None]:
    """Inside, the norms have their first states and do not update their statistics."""
    with ExitStack() as stack:
        for norm, training, counted in states:
            stack.enter_context(_set(norm, training=training))
            if isinstance(norm, SynchronisedBatchNorm2d):
                stack.enter_context(_set(norm, track_running_stats=False, counted=counted))
            else:
                # a momentum of 0 leaves the running statistics unchanged; without statistics autograd would keep fewer
                # tensors than the first time, which torch refuses
                stack.enter_context(_set(norm, momentum=0.0, num_batches_tracked=None))
        if inner is not None:
            stack.enter_context(inner)
        yield


@contextmanager
def _set(module: nn.Module, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
