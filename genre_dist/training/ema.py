"""An exponential moving average of the weights, kept beside the ones that are trained.

What is averaged is a set of tensors under the parameters' names, each laid out as the strategy lays out the parameter
itself (whole, or this rank's part), so any strategy whose model shows its weights can have it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.tensors import divide
from genre_dist.parallel.world import World

STEPS = "steps"


class Averaged(Strategy):
    """A strategy that also keeps the average of its weights and of BatchNorm's running statistics; see `Strategy`.

    `weights` are the averaged ones, `state_dict` has both. Everything that is trained, now or later, has to have its
    gradient turned on when this is made.
    """

    def __init__(self, inner: Strategy, decay: float, world: World) -> None:
        self.inner, self.decay, self.world = inner, decay, world
        self.model, self.optimizer = inner.model, inner.optimizer
        live: dict[str, Tensor] = {name: p for name, p in inner.model.named_parameters() if p.requires_grad}
        self._buffers = [name for name, buffer in inner.model.named_buffers() if buffer.is_floating_point()]
        live |= {name: buffer for name, buffer in inner.model.named_buffers() if name in self._buffers}
        self._live = live
        self.average = {name: tensor.detach().clone() for name, tensor in live.items()}
        spread = {name for name, tensor in live.items() if isinstance(tensor, DTensor)}
        self._lists = [  # averages and what they follow, of one kind each; kept, as there are some thousand tensors
            ([self.average[name] for name in names], [live[name] for name in names])
            for names in ([name for name in live if name not in spread], [name for name in live if name in spread])
            if names
        ]
        self.steps = torch.zeros((), dtype=torch.int64)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        return self.inner.micro_batch(last)

    def forward(self, *inputs: Any) -> Tensor:
        return self.inner.forward(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.inner.backward(loss)

    def step(self, clip_norm: float | None) -> Tensor:
        norm = self.inner.step(clip_norm)
        self._follow()
        return norm

    def trained_changed(self) -> None:
        self.inner.trained_changed()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights: by little, at the start of a run by more."""
        done = int(self.steps)
        share = 1 - min(self.decay, (1 + done) / (10 + done))
        self.steps += 1
        for averages, live in self._lists:
            torch._foreach_lerp_(averages, live, share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
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
            tensor.copy_(self.average[name])
            self.average[name].copy_(before)

    @torch.no_grad()
    def sync_buffers(self) -> None:
        self.inner.sync_buffers()
        if self.world.size > 1:
            for name in sorted(self._buffers):
                dist.all_reduce(self.average[name])
                self.average[name] /= self.world.size

    def is_finite(self) -> bool:
        return self.inner.is_finite()

    def state_dict(self) -> dict[str, Any]:
        sizes = {name: 0 if isinstance(tensor, DTensor) else tensor.nbytes for name, tensor in self.average.items()}
        owners = divide(sizes, self.world.size)
        own = {
            name: tensor
            for name, tensor in self.average.items()
            if isinstance(tensor, DTensor) or owners[name] == self.world.rank
        }
        return self.inner.state_dict() | {"ema": own | ({STEPS: self.steps} if self.world.is_first else {})}

    def blank_state(self) -> dict[str, Any]:
        return self.inner.blank_state() | {"ema": self.average | {STEPS: self.steps}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The average was read into its own tensors."""
        self.inner.load_state_dict({part: tensors for part, tensors in state.items() if part != "ema"})

    def weights(self) -> dict[str, Tensor]:
        with self.averaged():  # copies: a weight on the host is the very tensor that is swapped back
            return {name: tensor.clone() for name, tensor in self.inner.weights().items()}


def evaluated(strategy: Strategy) -> AbstractContextManager[None]:
    """Within it, the model has the weights that are evaluated and exported."""
    return strategy.averaged() if isinstance(strategy, Averaged) else nullcontext()
