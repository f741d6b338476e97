"""What the training loop asks of a strategy, and the choice between them."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from genre_dist.config import Config
from genre_dist.parallel.replicated import Replicated
from genre_dist.parallel.world import World


class Strategy(Protocol):
    """One way to train a model on all ranks. The loop never asks which.

    Every rank calls every method the same number of times in the same order.
    """

    model: nn.Module
    """The plain model: its parameters and names."""
    optimizer: Optimizer

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Surrounds forward and backward of a micro-batch; gradients are exchanged in the last one of a step."""

    def forward(self, *inputs: Tensor | None) -> Tensor: ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that is this rank's part of a sum over all ranks."""

    def step(self, clip_norm: float | None) -> Tensor:
        """Clip, update the weights, forget the gradients; returns the whole gradient's norm before clipping."""

    def sync_buffers(self) -> None:
        """Make BatchNorm's running statistics the same on all ranks, before evaluating or saving."""

    def state_dict(self) -> dict[str, Any]:
        """Model and optimizer state keyed by parameter names, for torch.distributed.checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def check_strategy(config: Config, world_size: int) -> None:
    """Raise ValueError if the strategy cannot run on this many ranks."""
    if config.parallel.strategy == "single" and world_size > 1:
        raise ValueError(
            f"parallel.strategy=single with {world_size} ranks: each would train alone; use ddp (or auto), or one rank"
        )


def make_strategy(config: Config, model: nn.Module, optimizer: Optimizer, world: World) -> Strategy:
    """The strategy the configuration names, around a model on the world's device."""
    check_strategy(config, world.size)
    return Replicated(model, optimizer, world)
