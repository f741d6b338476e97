"""Two ranks with unequal batches normalise as one process does with all of them."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from genre_dist.models.batchnorm import SynchronisedBatchNorm2d

SHARES = (3, 5)  # samples on rank 0 and on rank 1
STEPS = 2  # the second one reads statistics that the first one moved


def make_network(norm: type[nn.BatchNorm2d], affine: bool, momentum: float | None, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = norm(4, momentum=momentum, affine=affine), norm(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), first, nn.Conv2d(4, 4, 1), second).to(dtype)


def make_batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs whose mean is large beside their spread, and the weights of a loss that treats all outputs differently."""
    generator = torch.manual_seed(1 + step)
    inputs = 10 + torch.randn(sum(SHARES), 3, 6, 6, generator=generator)
    return inputs.to(dtype), torch.randn(sum(SHARES), 4, 4, 4, generator=generator).to(dtype)


def run(network: nn.Sequential, part: slice) -> dict[str, Tensor]:
    """Train on a part of every batch without an optimizer; return all that came out."""
    results: dict[str, Tensor] = {}
    dtype = next(network.parameters()).dtype
    for step in range(STEPS):
        inputs, loss_weights = make_batch(step, dtype)
        own = inputs[part].to(memory_format=torch.channels_last).requires_grad_()
        output = network(own)
        (output * loss_weights[part]).sum().div(loss_weights.numel()).backward()  # by the count of all ranks
        assert own.grad is not None
        results |= {f"output {step}": output.detach(), f"input gradient {step}": own.grad}
    results |= {f"gradient {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    results |= dict(network.named_buffers())
    network.eval()
    return results | {"eval": network(make_batch(0, dtype)[0]).detach()}


def rank_main(rank: int, folder: str, affine: bool, momentum: float | None, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout=timeout, rank=rank, world_size=2)
    first = sum(SHARES[:rank])
    results = run(make_network(SynchronisedBatchNorm2d, affine, momentum, dtype), slice(first, first + SHARES[rank]))
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("affine", "momentum", "dtype"), [(True, 0.1, torch.float32), (False, None, torch.float64)])
def test_outputs_gradients_and_statistics_equal_one_process(
    tmp_path: Path, affine: bool, momentum: float | None, dtype: torch.dtype
) -> None:
    context = mp.spawn(rank_main, (str(tmp_path), affine, momentum, dtype), nprocs=2, join=False)
    try:
        deadline = time.monotonic() + 90
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, "the ranks hang"
    finally:
        for process in context.processes:
            process.kill()
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    expected = run(make_network(nn.BatchNorm2d, affine, momentum, dtype), slice(None))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for name, value in expected.items():
        if name.startswith(("output", "input")):
            found = torch.cat([results[name] for results in ranks])
        elif name.startswith("gradient"):
            found = ranks[0][name] + ranks[1][name]
        else:  # buffers, and outputs in eval mode: the same on all ranks
            torch.testing.assert_close(ranks[0][name], ranks[1][name], atol=0, rtol=0)
            found = ranks[0][name]
        torch.testing.assert_close(found, value, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
