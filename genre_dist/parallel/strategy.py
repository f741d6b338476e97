"""The interface between the training loop and a strategy."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from genre_dist.parallel.tensors import all_finite
from genre_dist.parallel.world import World


class Strategy:
    """One way to train a model on all ranks; the loop does not know which. The default methods use torch's own API.

    Every rank calls every method, and `model`, the same number of times in the same order.
    """

    model: nn.Module
    """The unwrapped model, with its own parameter names, for predictions too. Its parameters may be sharded."""
    optimizer: Optimizer
    """The optimizer, whose groups have the learning rates of the next step."""
    world: World

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """The context of a micro-batch's forward and backward; a step's last one completes the gradients."""
        return nullcontext()

    def forward(self, *inputs: Any) -> Tensor:
        """The model's output. Tensors among the inputs are on the world's device; other inputs pass unchanged."""
        return self.model(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss that is this rank's term of a sum over all ranks."""
        (loss * self.world.size).backward()  # DDP and FSDP average over the ranks

    def step(self, clip_norm: float | None) -> Tensor:
        """Clip, update the weights, drop the gradients; returns the global gradient norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self._trained, clip_norm if clip_norm is not None else float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def trained_changed(self) -> None:
        """Update the list of trained parameters after a change of `requires_grad`; the optimizer has all of them."""
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def sync_buffers(self) -> None:
        """Make BatchNorm's running statistics the mean of all ranks', before evaluating or saving."""
        if self.world.size > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.world.size

    def is_finite(self) -> bool:
        """Whether all weights and buffers of this rank are finite."""
        return all_finite(self.model.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        """This rank's share of a checkpoint; together the shares are complete.

        {"model": {name: tensor}, "optimizer": {name of a trained parameter: {"exp_avg": tensor, ...}}}, fp32 and keyed
        by parameter names whatever the strategy.
        """
        return self.blank_state()

    def blank_state(self) -> dict[str, Any]:
        """Tensors in the structure of `state_dict`, into which torch.distributed.checkpoint reads a checkpoint."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that was read into `blank_state()`."""
        groups = get_state_dict(self.model, self.optimizer)[1]["param_groups"]
        optimizer = {"state": state["optimizer"], "param_groups": groups}
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=optimizer)

    def weights(self) -> dict[str, Tensor]:
        """All weights and buffers, unsharded and on the host, on rank 0; the results of other ranks are incomplete."""
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
