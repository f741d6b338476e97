"""An exponential moving average (EMA) of the weights, kept beside the trained ones.

The averages are tensors under the parameters' names, each laid out as the strategy lays out the parameter itself
(whole, or this rank's shard), so any strategy whose model exposes its weights can have them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.tensors import divide
from genre_dist.parallel.world import World

STEPS = "steps"


class Average:
    """The average of a model's weights and of BatchNorm's running statistics.

    Parameters that train now or later must require gradients when this is constructed.
    """

    def __init__(self, model: nn.Module, decay: float, world: World) -> None:
        self.decay, self.world = decay, world
        live: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
        live |= {name: buffer for name, buffer in model.named_buffers() if name in self._buffers}
        self._live = live
        self.tensors = {name: tensor.detach().clone() for name, tensor in live.items()}
        spread = {name for name, tensor in live.items() if isinstance(tensor, DTensor)}
        self._lists = [  # averages and weights, plain tensors and DTensors apart; built once, as there are thousands
            ([self.tensors[name] for name in names], [live[name] for name in names])
            for names in ([name for name in live if name not in spread], [name for name in live if name in spread])
            if names
        ]
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the weights after a step; the decay is smaller at the start of a run."""
        done = int(self.steps)
        share = 1 - min(self.decay, (1 + done) / (10 + done))
        self.steps += 1
        for averages, live in self._lists:
            torch._foreach_lerp_(averages, live, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the averaged weights; afterwards it has its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self._live.items():
            before = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(before)

    @torch.no_grad()
    def sync_buffers(self) -> None:
        if self.world.size > 1:
            for name in sorted(self._buffers):
                dist.all_reduce(self.tensors[name])
                self.tensors[name] /= self.world.size

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's share of the average, as `Strategy.state_dict` has its share of the weights."""
        sizes = {name: 0 if isinstance(tensor, DTensor) else tensor.nbytes for name, tensor in self.tensors.items()}
        owners = divide(sizes, self.world.size)
        own = {
            name: tensor
            for name, tensor in self.tensors.items()
            if isinstance(tensor, DTensor) or owners[name] == self.world.rank
        }
        return own | ({STEPS: self.steps} if self.world.is_first else {})


class TrainState:
    """The state that a run saves and exports: weights, optimizer states and, if there is one, the weights' average."""

    def __init__(self, strategy: Strategy, average: Average | None = None) -> None:
        self.strategy, self.average = strategy, average

    def follow(self) -> None:
        """Update the average; called after every step."""
        if self.average is not None:
            self.average.follow()

    def evaluated(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that are evaluated and exported."""
        return nullcontext() if self.average is None else self.average.in_place()

    def sync_buffers(self) -> None:
        """Make BatchNorm's running statistics the same on all ranks."""
        self.strategy.sync_buffers()
        if self.average is not None:
            self.average.sync_buffers()

    def state_dict(self) -> dict[str, Any]:
        """This rank's share of a checkpoint, see `Strategy.state_dict`; the average lies under `ema`."""
        ema = {} if self.average is None else {"ema": self.average.state_dict()}
        return self.strategy.state_dict() | ema

    def blank_state(self) -> dict[str, Any]:
        """Tensors to load a checkpoint into; the averages are loaded in place."""
        if self.average is None:
            return self.strategy.blank_state()
        return self.strategy.blank_state() | {"ema": self.average.tensors | {STEPS: self.average.steps}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the tensors that were loaded into `blank_state()`."""
        self.strategy.load_state_dict({part: tensors for part, tensors in state.items() if part != "ema"})

    def weights(self) -> dict[str, Tensor]:
        """The weights to export, whole and on the host, on rank 0."""
        if self.average is None:
            return self.strategy.weights()
        with self.average.in_place():  # copies: on a CPU these are the model's own tensors, which are swapped back
            return {name: tensor.clone() for name, tensor in self.strategy.weights().items()}
