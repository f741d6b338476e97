"""Every rank holds the whole model: one process alone, or several with DistributedDataParallel."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from genre_dist.parallel.tensors import all_finite, average_buffers, divide, send_from_first
from genre_dist.parallel.world import World


class Replicated:
    """See `Strategy`. Rank 0's weights are sent to all ranks at the start.

    `compress` sends gradients in bf16. `static_graph` promises DistributedDataParallel that every step uses the same
    parameters in the same way, with one micro-batch a step.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, world: World, compress: bool = False, static_graph: bool = False
    ) -> None:
        self.model, self.optimizer, self.world = model, optimizer, world
        self._compress, self._static_graph = compress, static_graph
        self._parallel: DistributedDataParallel | None = None
        send_from_first(model, world)
        self.trained_changed()

    def trained_changed(self) -> None:
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.world.size == 1:
            return
        self._parallel = None  # the old one's hooks go with it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name is not in every torch we support
            self._parallel = DistributedDataParallel(
                self.model,
                device_ids=None,  # with some it would move all it is given to the device, the lengths of texts too
                gradient_as_bucket_view=True,
                # BatchNorm's buffers may differ between the ranks until sync_buffers averages them
                broadcast_buffers=False,
                init_sync=False,
                static_graph=self._static_graph,
            )
        # the text encoder's gradients come from a stream of its own, and DDP adds them up on the loop's, on purpose
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        if self._compress:
            self._parallel.register_comm_hook(None, bf16_compress_hook)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last or self._parallel is None else self._parallel.no_sync()

    def forward(self, *inputs: Any) -> Tensor:
        return (self._parallel or self.model)(*inputs)

    def backward(self, loss: Tensor) -> None:
        (loss * self.world.size).backward()  # DDP averages over the ranks; the loss is a sum over them

    def step(self, clip_norm: float | None) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self._trained, clip_norm if clip_norm is not None else float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def sync_buffers(self) -> None:
        average_buffers(self.model, self.world)

    def is_finite(self) -> bool:
        return all_finite(self.model.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        state = self.blank_state()
        sizes = {
            name: weight.nbytes + sum(moment.nbytes for moment in state["optimizer"].get(name, {}).values())
            for name, weight in state["model"].items()
        }
        owners = divide(sizes, self.world.size)
        return {
            part: {name: value for name, value in tensors.items() if owners[name] == self.world.rank}
            for part, tensors in state.items()
        }

    def blank_state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = get_state_dict(self.model, self.optimizer)[1]["param_groups"]
        optimizer = {"state": state["optimizer"], "param_groups": groups}
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=optimizer)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
