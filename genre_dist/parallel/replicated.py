"""Every rank holds the whole model: one process alone, or several with DistributedDataParallel."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from genre_dist.parallel.world import World


class Replicated:
    """See `Strategy`. Rank 0's weights are sent to all ranks at the start."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, world: World) -> None:
        self.model, self.optimizer, self.world = model, optimizer, world
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._parallel: DistributedDataParallel | None = None
        if world.size > 1:
            with torch.no_grad():
                for tensor in (*model.parameters(), *model.buffers()):
                    dist.broadcast(tensor, 0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # its new name is not in every torch we support
                self._parallel = DistributedDataParallel(
                    model,
                    device_ids=[world.device.index] if world.device.type == "cuda" else None,
                    gradient_as_bucket_view=True,
                    # BatchNorm's buffers may differ between the ranks until sync_buffers averages them
                    broadcast_buffers=False,
                )

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last or self._parallel is None else self._parallel.no_sync()

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return (self._parallel or self.model)(*inputs)

    def backward(self, loss: Tensor) -> None:
        (loss * self.world.size).backward()  # DDP averages over the ranks; the loss is a sum over them

    def step(self, clip_norm: float | None) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self._trained, clip_norm if clip_norm is not None else float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def sync_buffers(self) -> None:
        if self._parallel is None:
            return
        with torch.no_grad():
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.world.size

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
