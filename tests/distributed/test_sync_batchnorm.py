"""Two ranks with unequal batches normalise as one process does with all of them."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import forked
import norm_kernels
import pytest
import torch
import torch.distributed as dist
from helpers import until
from torch import Tensor, nn

from genre_dist.models import batchnorm
from genre_dist.models.batchnorm import SynchronisedBatchNorm2d, no_statistics

KERNELS = (
    "batch_norm_stats",
    "batch_norm_gather_stats_with_counts",
    "batch_norm_elemt",
    "batch_norm_backward_reduce",
    "batch_norm_backward_elemt",
)
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


def join(rank: int, folder: str, on_gpu: bool) -> None:
    """Be a rank; `on_gpu` normalises as there, with kernels that compute the same here."""
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout=timeout, rank=rank, world_size=2)
    if on_gpu:
        batchnorm._Normalise = batchnorm._NormaliseOnGPU  # type: ignore[misc, assignment]
        for name in KERNELS:
            setattr(torch, name, getattr(norm_kernels, name))


def leave() -> None:
    dist.barrier()
    dist.destroy_process_group()


def rank_main(rank: int, folder: str, affine: bool, momentum: float | None, dtype: torch.dtype, on_gpu: bool) -> None:
    join(rank, folder, on_gpu)
    first = sum(SHARES[:rank])
    results = run(make_network(SynchronisedBatchNorm2d, affine, momentum, dtype), slice(first, first + SHARES[rank]))
    torch.save(results, f"{folder}/rank{rank}.pt")
    leave()


def on_two_ranks(main: Callable[..., None], *arguments: object) -> None:
    """Run `main(rank, *arguments)` in two processes; a hang is a failure."""
    ranks = [forked.start(main, rank, *arguments) for rank in range(2)]
    try:
        until(lambda: all(rank.exitcode is not None for rank in ranks), 180, "both ranks to end")
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.parametrize(
    ("affine", "momentum", "dtype", "on_gpu"),
    [
        (True, 0.1, torch.float32, False),
        (False, None, torch.float64, False),
        (True, 0.1, torch.float32, True),
        (False, None, torch.float32, True),
    ],
)
def test_outputs_gradients_and_statistics_equal_one_process(
    tmp_path: Path, affine: bool, momentum: float | None, dtype: torch.dtype, on_gpu: bool
) -> None:
    on_two_ranks(rank_main, str(tmp_path), affine, momentum, dtype, on_gpu)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    expected = run(make_network(nn.BatchNorm2d, affine, momentum, dtype), slice(None))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4 if on_gpu else 1e-5  # those kernels hand on 1 / deviation
    for name, value in expected.items():
        if name.startswith(("output", "input")):
            found = torch.cat([results[name] for results in ranks])
        elif name.startswith("gradient"):
            found = ranks[0][name] + ranks[1][name]
        else:  # buffers, and outputs in eval mode: the same on all ranks
            torch.testing.assert_close(ranks[0][name], ranks[1][name], atol=0, rtol=0)
            found = ranks[0][name]
        torch.testing.assert_close(found, value, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def uncounted_main(rank: int, folder: str, on_gpu: bool) -> None:
    """Rank 0 has a blank sample only, in the second pass rank 1 as well."""
    join(rank, folder, on_gpu)
    network = make_network(SynchronisedBatchNorm2d, True, 0.1, torch.float32)
    told = {}
    for step in range(2):
        inputs = make_batch(step, torch.float32)[0][: 1 if rank == 0 or step else 5].requires_grad_()
        blank = rank == 0 or step == 1
        with no_statistics([network]) if blank else nullcontext():
            output = network(inputs)
        (output * (0 if blank else 1)).square().sum().backward()
        told |= {f"output {step}": output.detach(), f"input gradient {step}": inputs.grad}
        told |= {f"{name} {step}": buffer.clone() for name, buffer in network.named_buffers()}
    torch.save(told | {name: p.grad for name, p in network.named_parameters()}, f"{folder}/rank{rank}.pt")
    leave()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_blank_sample_counts_for_nothing_on_the_first_rank_and_on_all(tmp_path: Path, on_gpu: bool) -> None:
    on_two_ranks(uncounted_main, str(tmp_path), on_gpu)
    blank, counted = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    alone = make_network(nn.BatchNorm2d, True, 0.1, torch.float32)
    inputs = make_batch(0, torch.float32)[0][:5].requires_grad_()
    output = alone(inputs)
    output.square().sum().backward()
    tolerance = 1e-4
    torch.testing.assert_close(counted["output 0"], output, atol=tolerance, rtol=0)
    torch.testing.assert_close(counted["input gradient 0"], inputs.grad, atol=tolerance, rtol=0)
    for name, buffer in alone.named_buffers():
        for rank in (blank, counted):
            torch.testing.assert_close(rank[f"{name} 0"], buffer, atol=tolerance, rtol=0)
            torch.testing.assert_close(rank[f"{name} 1"], rank[f"{name} 0"], atol=0, rtol=0)  # nobody counted
    for name, value in blank.items():
        assert value.isfinite().all(), name
        assert "gradient" not in name or not value.any(), name
