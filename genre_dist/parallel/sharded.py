"""Every rank holds a part of every tensor: FSDP2 (torch's `fully_shard`).

Weights, gradients and the optimizer's moments are spread over the ranks. The weights of one unit (a stage of the
poster's network, the text encoder, the heads) are gathered when it computes and given up again after. Parameters stay
fp32, so bf16 is autocast's business as with every other strategy and BatchNorm keeps its fp32 statistics.
"""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from genre_dist.models.classifier import GenreClassifier
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.tensors import send_from_first
from genre_dist.parallel.world import World

LARGE, SMALL = 0.75, 0.01
"""Shares of a network's weights: a chain of modules with more is cut further, one with less is no unit of its own."""


class Sharded(Strategy):
    """See `Strategy`. `make_optimizer` is called once the parameters are sharded; `compress` adds gradients in bf16.

    Gradients are exchanged after every micro-batch: whole ones would take the memory that is to be saved.
    """

    def __init__(
        self, model: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer], world: World, compress: bool = False
    ) -> None:
        self.world = world
        if isinstance(model, GenreClassifier):
            model.text_beside = False  # a unit's weights are given up in the order of one stream
        send_from_first(model, world)
        self.model = model.to(memory_format=torch.contiguous_format)  # shards are cut from contiguous weights only
        mesh = init_device_mesh(world.device.type, (world.size,))
        precision = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if compress else None)
        for unit in (*units(model), model):
            # also the last unit gives its weights up: whoever changes weights between two passes is always seen
            fully_shard(unit, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        self.optimizer = make_optimizer(self.model)
        self.trained_changed()

    def weights(self) -> dict[str, Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(self.model, options=options))


def units(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose weights are gathered together: each part of the model, a poster network in pieces.

    A network is cut along the modules it calls one after another: torchvision's stages, blocks of a Sequential.
    The text encoder stays whole: a recurrent kernel wants all its weights at once.
    """
    for name, part in model.named_children():
        if name == "poster":
            network = getattr(part, "network", part)
            yield from _pieces(network, _count(network))
        yield part


def _pieces(module: nn.Module, whole: int) -> Iterator[nn.Module]:
    for child in module.children():
        container = type(child).forward is nn.Module.forward  # a ModuleList: only its children are ever called
        if container or (isinstance(child, nn.Sequential) and _count(child) > LARGE * whole):
            yield from _pieces(child, whole)
        elif _count(child) > SMALL * whole:
            yield child


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
