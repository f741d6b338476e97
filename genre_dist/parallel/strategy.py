"""What the training loop asks of a strategy."""

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
    """One way to train a model on all ranks; the loop never asks which. The methods here are torch's own way.

    Every rank calls every method, and `model`, the same number of times in the same order.
    """

    model: nn.Module
    """The plain model: its names, and what to call for predictions. Its parameters may be parts only."""
    optimizer: Optimizer
    """Its groups' learning rates are those of the next step."""
    world: World

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Surrounds forward and backward of a micro-batch; gradients are complete after the last one of a step."""
        return nullcontext()

    def forward(self, *inputs: Any) -> Tensor:
        """The model's output. Tensors among the inputs lie on the world's device; what else there is stays as it is."""
        return self.model(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that is this rank's part of a sum over all ranks."""
        (loss * self.world.size).backward()  # DDP and FSDP average over the ranks

    def step(self, clip_norm: float | None) -> Tensor:
        """Clip, update the weights, forget the gradients; returns the whole gradient's norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self._trained, clip_norm if clip_norm is not None else float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def trained_changed(self) -> None:
        """Called after gradients of parameters were turned on or off; the optimizer knows all that ever train."""
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
        """Whether no weight or buffer that this rank holds is infinite or NaN."""
        return all_finite(self.model.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        """This rank's share of what a checkpoint holds; together the shares are the whole.

        {"model": {name: tensor}, "optimizer": {name of a trained parameter: {"exp_avg": tensor, ...}}}, fp32 and keyed
        by parameter names whatever the strategy.
        """
        return self.blank_state()

    def blank_state(self) -> dict[str, Any]:
        """Tensors, structured like `state_dict`, for torch.distributed.checkpoint to read a whole checkpoint into."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was read into `blank_state()`."""
        groups = get_state_dict(self.model, self.optimizer)[1]["param_groups"]
        optimizer = {"state": state["optimizer"], "param_groups": groups}
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=optimizer)

    def weights(self) -> dict[str, Tensor]:
        """All weights and buffers, whole and on the host, on rank 0; what other ranks get is of no use."""
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
