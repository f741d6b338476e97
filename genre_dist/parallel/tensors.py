"""Functions shared by the strategies: broadcast a model's tensors, check them, divide a checkpoint."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from genre_dist.parallel.world import World


@torch.no_grad()
def send_from_first(model: nn.Module, world: World) -> None:
    """Overwrite every rank's weights and buffers with those of rank 0, which alone reads files of weights."""
    if world.size > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, 0)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of the tensors, or of this rank's shards of them, are finite."""
    own = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    # minimum and maximum are NaN if a number is: one pass without a temporary, and one wait for the device
    ends = [end.float() for t in own if t.is_floating_point() and t.numel() for end in torch.aminmax(t.detach())]
    return not ends or bool(torch.stack(ends).isfinite().all())


def divide(sizes: dict[str, int], ranks: int) -> dict[str, int]:
    """Assign every name to a rank so that the ranks' sums of sizes are about equal; every rank gets the same result."""
    loads = [0] * ranks
    owners = {}
    for name, size in sizes.items():
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += size
    return owners
