"""An exponential moving average of the weights, kept beside the ones that are trained.

What is averaged is a set of tensors under the parameters' names, each laid out as the strategy lays out the parameter
itself (whole, or this rank's part), so any strategy whose model shows its weights can have it.
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

    Everything that is trained, now or later, has to have its gradient turned on when this is made.
    """

    def __init__(self, model: nn.Module, decay: float, world: World) -> None:
        self.decay, self.world = decay, world
        live: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
        live |= {name: buffer for name, buffer in model.named_buffers() if name in self._buffers}
        self._live = live
        self.tensors = {name: tensor.detach().clone() for name, tensor in live.items()}
        spread = {name for name, tensor in live.items() if isinstance(tensor, DTensor)}
        self._lists = [  # averages and what they follow, of one kind each; kept, as there are some thousand tensors
            ([self.tensors[name] for name in names], [live[name] for name in names])
            for names in ([name for name in live if name not in spread], [name for name in live if name in spread])
            if names
        ]
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the weights, after a step: by little, at the start of a run by more."""
        done = int(self.steps)
        share = 1 - min(self.decay, (1 + done) / (10 + done))
        self.steps += 1
        for averages, live in self._lists:
            torch._foreach_lerp_(averages, live, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model has the averaged weights; after it, bit for bit those it had."""
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
    """What a run saves and exports: a strategy's weights and moments and, where it is kept, the weights' average."""

    def __init__(self, strategy: Strategy, average: Average | None = None) -> None:
        self.strategy, self.average = strategy, average

    def follow(self) -> None:
        """Called after every step."""
        if self.average is not None:
            self.average.follow()

    def evaluated(self) -> AbstractContextManager[None]:
        """Within it, the model has the weights that are evaluated and exported."""
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
        """Tensors to read a whole checkpoint into: the average's are its own."""
        if self.average is None:
            return self.strategy.blank_state()
        return self.strategy.blank_state() | {"ema": self.average.tensors | {STEPS: self.average.steps}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was read into `blank_state()`."""
        self.strategy.load_state_dict({part: tensors for part, tensors in state.items() if part != "ema"})

    def weights(self) -> dict[str, Tensor]:
        """The weights to export, whole and on the host, on rank 0."""
        if self.average is None:
            return self.strategy.weights()
        with self.average.in_place():  # copies: a weight on the host is the very tensor that is swapped back
            return {name: tensor.clone() for name, tensor in self.strategy.weights().items()}
