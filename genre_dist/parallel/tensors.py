"""What the strategies have in common: sending a model's tensors, checking them, dividing what is saved."""

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
    """Whether no number of the tensors, or of this rank's parts of them, is infinite or NaN."""
    own = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    # smallest and largest are NaN if one is: one pass without a tensor in between, and one wait for the device
    ends = [end.float() for t in own if t.is_floating_point() and t.numel() for end in torch.aminmax(t.detach())]
    return not ends or bool(torch.stack(ends).isfinite().all())


def divide(sizes: dict[str, int], ranks: int) -> dict[str, int]:
    """Give every name a rank, so that the ranks' sums of sizes are about equal; the same on every rank."""
    loads = [0] * ranks
    owners = {}
    for name, size in sizes.items():
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += size
    return owners
