"""Every rank holds the whole model: one process alone, or several with DistributedDataParallel."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.tensors import divide, send_from_first
from genre_dist.parallel.world import World


class Replicated(Strategy):
    """See `Strategy`. Rank 0's weights are sent to all ranks at the start.

    `compress` sends gradients in bf16. `static_graph` declares to DistributedDataParallel that every step uses the same
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
        super().trained_changed()
        if self.world.size == 1:
            return
        self._parallel = None  # frees the old one and its hooks
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # not every supported torch has the new name
            self._parallel = DistributedDataParallel(
                self.model,
                device_ids=None,  # any ids would make it move all inputs, text lengths too
                gradient_as_bucket_view=True,
                # BatchNorm's buffers may differ between the ranks until sync_buffers averages them
                broadcast_buffers=False,
                init_sync=False,
                static_graph=self._static_graph,
            )
        # DDP sums the text encoder's gradients, which come from another stream, on the loop's stream; this is intended
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        if self._compress:
            self._parallel.register_comm_hook(None, bf16_compress_hook)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last or self._parallel is None else self._parallel.no_sync()

    def forward(self, *inputs: Any) -> Tensor:
        return (self._parallel or self.model)(*inputs)

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
