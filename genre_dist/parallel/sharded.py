"""Every rank holds a part of every tensor: FSDP2 (torch's `fully_shard`).

Weights, gradients and the optimizer's moments are sharded over the ranks. FSDP gathers the weights of one unit (a stage
of the image network, the text encoder, the heads) for its computation and frees them afterwards. Parameters stay fp32,
so autocast provides bf16 as with every other strategy, and BatchNorm keeps its fp32 statistics.
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
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.tensors import send_from_first
from genre_dist.parallel.world import World

LARGE, SMALL = 0.75, 0.01
"""Shares of a network's weights: a Sequential above LARGE is split further, a module below SMALL is no unit."""


class Sharded(Strategy):
    """See `Strategy`. `make_optimizer` is called once the parameters are sharded; `compress` sums gradients in bf16.

    Gradients are exchanged after every micro-batch: unsharded ones would take the memory that FSDP saves.
    """

    def __init__(
        self, model: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer], world: World, compress: bool = False
    ) -> None:
        self.world = world
        if isinstance(model, GenreClassifier):
            model.text_beside = False  # units free their weights in the order of one stream
        send_from_first(model, world)
        self.model = model.to(memory_format=torch.contiguous_format)  # FSDP shards contiguous weights only
        mesh = init_device_mesh(world.device.type, (world.size,))
        precision = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if compress else None)
        for unit in (*units(model), model):
            # the last unit too frees its weights, so that a pass sees every change of weights since the last one
            fully_shard(unit, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        self.optimizer = make_optimizer(self.model)
        self.trained_changed()

    def weights(self) -> dict[str, Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(self.model, options=options))


def units(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose weights are gathered together: each part of the model, and the parts of an image network.

    A network is split into the modules that it calls in sequence: torchvision's stages, blocks of a Sequential. A
    pretrained text encoder is split into its layers and the rest; any other is one unit, since a recurrent kernel needs
    all its weights at once.
    """
    for part in model.children():
        if isinstance(part, PretrainedText):
            yield from part.layers()
        elif (network := getattr(part, "network", None)) is not None:
            yield from _network_units(network, _count(network))
        yield part


def _network_units(module: nn.Module, total: int) -> Iterator[nn.Module]:
    for child in module.children():
        container = type(child).forward is nn.Module.forward  # a ModuleList: only its children are ever called
        if container or (isinstance(child, nn.Sequential) and _count(child) > LARGE * total):
            yield from _network_units(child, total)
        elif _count(child) > SMALL * total:
            yield child


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
