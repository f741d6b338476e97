"""Activation checkpointing: parts of the poster encoder keep only their inputs and are computed again going backward.

The second computation must be the first one over again and leave no trace. Dropout draws again what it drew (torch
sees to that); BatchNorm is what needs care: its running statistics must not be updated a second time, and a batch that
passed in eval mode or uncounted must pass so again.
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

Kind = Literal["none", "stages", "blocks", "selective"]
Context = AbstractContextManager[Any]

_EXPENSIVE = [
    torch.ops.aten.convolution.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
]
"""What `selective` keeps; norms and activations are computed again for next to nothing."""


def recompute_activations(network: nn.Module, kind: Kind) -> None:
    """Make a network's stages or blocks forget their activations; `selective` keeps those of convolutions and products.

    Names, parameters and results stay the same. Raises ValueError for a network that is not built of blocks in
    `nn.Sequential`s.
    """
    if kind == "none":
        return
    for region in regions(network, kind):
        if kind == "selective":
            for module in region.modules():
                if getattr(module, "inplace", False):
                    cast(Any, module).inplace = False  # what is kept must not be overwritten
        norms = [module for module in region.modules() if isinstance(module, _BatchNorm)]
        region.forward = partial(_recomputed, region.forward, partial(_contexts, norms, kind == "selective"))


def regions(network: nn.Module, kind: Kind) -> list[nn.Module]:
    """The parts that are computed again as one: blocks, or for `stages` the sequences of blocks.

    A block is a module made of others that lies in an `nn.Sequential`: a ResNet's bottlenecks, an EfficientNet's
    MBConvs, a ViT's encoder layers; the outermost counts.
    """
    all_blocks = list(blocks(network))
    if not all_blocks:
        raise ValueError(
            f"train.activation_checkpointing={kind} finds no blocks in the poster encoder (modules of several parts in "
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
    """A network's blocks, as `regions` tells them."""
    for child in module.children():
        composed = type(child) is not nn.Sequential and any(True for _ in child.children())
        if type(module) is nn.Sequential and composed:
            yield child
        else:
            yield from blocks(child)


def _recomputed(forward: Callable[..., Tensor], contexts: Callable[[], Any], *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


class _Seen(NamedTuple):
    """How a norm stood when the batch passed the first time."""

    norm: _BatchNorm
    training: bool
    counted: bool


def _contexts(
    norms: list[_BatchNorm], selective: bool
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds the first computation and the second; called at the first."""
    seen = [_Seen(norm, norm.training, getattr(norm, "counted", True)) for norm in norms]
    if not selective:
        return nullcontext(), _again(seen)
    keeping, reading = create_selective_checkpoint_contexts(_EXPENSIVE)
    return keeping, _again(seen, reading)


@contextmanager
def _again(seen: list[_Seen], inner: Context | None = None) -> Iterator[None]:
    """The norms as they stood, with statistics that stay."""
    with ExitStack() as stack:
        for norm, training, counted in seen:
            stack.enter_context(_set(norm, training=training))
            if isinstance(norm, SynchronisedBatchNorm2d):
                stack.enter_context(_set(norm, track_running_stats=False, counted=counted))
            else:
                # 0 leaves the running statistics as they are; without them autograd would keep fewer tensors than the
                # first time, which torch refuses
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
