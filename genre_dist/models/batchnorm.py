"""Synchronised BatchNorm, on CPUs (gloo) as on GPUs (NCCL).

`torch.nn.SyncBatchNorm` refuses CPU tensors, and tests and small clusters run on gloo.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with training statistics over the batches of all ranks, which may differ in size.

    Parameters, buffers and eval mode are `nn.BatchNorm2d`'s; without a process group, or on one rank, so is everything
    else. Every rank must call it equally often. Gradients of weight and bias are the rank's own share: data
    parallelism sums them over the ranks, which gives the gradients of the global batch.
    """

    counted = True
    """Whether this rank's batch counts in the statistics; see `no_statistics`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, H, W] over B, H and W of all ranks."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        normalise = _NormaliseOnGPU if input.is_cuda else _Normalise
        output, mean, unbiased_variance, any_counted = normalise.apply(
            input, self.weight, self.bias, self.eps, self.counted
        )
        if self.track_running_stats:
            self._track(mean, unbiased_variance, any_counted)
        return output

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor, any_counted: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(any_counted)
        if self.momentum is None:
            share = any_counted / self.num_batches_tracked.clamp(min=1).to(self.running_mean.dtype)
        else:
            share = any_counted.to(self.running_mean.dtype) * self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """A handwritten backward pass, which keeps one copy of the input and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, counted: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _global_statistics(values, counted)
        ctx.counted = counted
        ctx.save_for_backward(values, weight, mean, (variance + eps).rsqrt(), count)
        output = F.batch_norm(values, mean, variance, weight, bias, False, 0.0, eps)
        unbiased, any_counted = variance * count / (count - 1).clamp(min=1), count > 0
        ctx.mark_non_differentiable(mean, unbiased, any_counted)
        return output, mean, unbiased, any_counted

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        values, weight, mean, inverse_deviation, count = ctx.saved_tensors
        normalised = (values - _per_channel(mean)) * _per_channel(inverse_deviation)
        grad_sum = grad.sum((0, 2, 3), dtype=mean.dtype)  # [C]
        normalised_sum = (grad * normalised).sum((0, 2, 3))  # [C]
        totals = torch.stack([grad_sum, normalised_sum])
        dist.all_reduce(totals)
        # the gradient through mean and deviation, which depend on the input if its batch counts
        mean_grad, mean_normalised = totals / count.clamp(min=1) * ctx.counted
        scale = inverse_deviation if weight is None else inverse_deviation * weight
        grad_values = grad - _per_channel(mean_grad) - normalised * _per_channel(mean_normalised)
        grad_values = (grad_values * _per_channel(scale)).to(values.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return grad_values, normalised_sum if needs_weight else None, grad_sum if needs_bias else None, None, None


NOTHING = 1e-20
"""Count of an excluded batch: torch's kernel divides by the sum of the first counts, which must not be 0."""


class _NormaliseOnGPU(torch.autograd.Function):
    """The same with the kernels of `torch.nn.SyncBatchNorm`, which itself blocks on the device in every layer.

    (A mask there drops the ranks without samples, and the host must know its size: `nn/modules/_functions.py`.)
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, counted: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = _dense(values)
        channels, per_channel = values.shape[1], values.numel() // values.shape[1]
        mean, inverse_deviation = torch.batch_norm_stats(values, eps)  # [C], [C], fp32
        count = mean.new_full((1,), per_channel if counted else NOTHING)
        every = _gathered(torch.cat([mean, inverse_deviation, count]))  # [W, 2C + 1]
        means, inverse_deviations, counts = every.split([channels, channels, 1], dim=1)
        # with a momentum of 1 the kernel writes the values to track: mean and unbiased variance over all ranks
        tracked = mean.new_zeros(channels), mean.new_ones(channels)
        mean, inverse_deviation = torch.batch_norm_gather_stats_with_counts(
            values, means, inverse_deviations, *tracked, 1.0, eps, counts.reshape(-1)
        )
        any_counted = counts.amax() >= 1
        divisors = counts.reshape(-1).to(torch.int32) + ~any_counted  # [W], whose sum is the divisor
        ctx.counted = counted
        ctx.save_for_backward(values, weight, mean, inverse_deviation, divisors)
        output = torch.batch_norm_elemt(values, weight, bias, mean, inverse_deviation, eps)
        ctx.mark_non_differentiable(*tracked, any_counted)
        return output, *tracked, any_counted

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        values, weight, mean, inverse_deviation, counts = ctx.saved_tensors
        grad = _dense(grad)
        needs = ctx.needs_input_grad
        *sums, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad, values, mean, inverse_deviation, weight, True, needs[1], needs[2]
        )
        totals = torch.stack(sums)  # [2, C]
        dist.all_reduce(totals)
        # the gradient through mean and deviation, which depend on the input if its batch counts
        totals = totals * float(ctx.counted)
        grad_values = torch.batch_norm_backward_elemt(
            grad, values, mean, inverse_deviation, weight, totals[0], totals[1], counts
        )
        return grad_values, grad_weight if needs[1] else None, grad_bias if needs[2] else None, None, None


def _dense(values: Tensor) -> Tensor:
    """Values [B, C, H, W] in a layout of the kernels: channels-last, or contiguous."""
    return values if values.is_contiguous(memory_format=torch.channels_last) else values.contiguous()


def _gathered(own: Tensor) -> Tensor:
    """The tensors of all ranks, stacked: [n] -> [W, n]."""
    every = own.new_empty(dist.get_world_size(), *own.shape)
    if own.is_cuda and "nccl" in dist.get_backend_config():
        dist.all_gather_into_tensor(every, own)
    else:  # gloo has only this one
        dist.all_gather(list(every.unbind()), own)
    return every


def _global_statistics(values: Tensor, counted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], biased variance [C] and count [] over the values [B, C, H, W] of all ranks.

    Ranks exchange means and centred squares, which keep the digits that sums of squares would lose.
    """
    channels = values.shape[1]
    dtype = torch.promote_types(values.dtype, torch.float32)
    variance, mean = torch.var_mean(values.to(dtype), dim=(0, 2, 3), correction=0)  # [C], [C]
    count = mean.new_full((1,), values.numel() // channels * counted)
    own = torch.cat([mean, variance, count])  # [2C + 1]
    means, variances, counts = _gathered(own).split([channels, channels, 1], dim=1)  # [W, C], [W, C], [W, 1]
    total = counts.sum()
    divisor = total.clamp(min=1)
    mean = (means * counts).sum(0) / divisor
    variance = ((variances + (means - mean) ** 2) * counts).sum(0) / divisor
    return mean, variance, total


@contextmanager
def no_statistics(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, a batch passes through parts of a model in training mode without a change of a BatchNorm's statistics.

    A rank without samples of a field computes on a blank one, so that it joins the collectives inside the model.
    """
    modules = [module for part in parts for module in part.modules()]
    norms = [norm for norm in modules if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training]
    for norm in norms:
        if isinstance(norm, SynchronisedBatchNorm2d):
            norm.counted = False
        else:
            norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
            if isinstance(norm, SynchronisedBatchNorm2d):
                norm.counted = True


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]  # [C, 1, 1], broadcasts with [B, C, H, W]


def synchronise_batch_norm(network: nn.Module) -> None:
    """Replace every `nn.BatchNorm2d` of `network` by a `SynchronisedBatchNorm2d` with the same tensors.

    Raises ValueError for any other kind of BatchNorm.
    """
    for parent_name, parent in list(network.named_modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.BatchNorm2d:
                setattr(parent, name, _converted(module))
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                where = f"{parent_name}.{name}".lstrip(".")
                raise ValueError(
                    f"model.poster.batch_norm=sync knows BatchNorm2d only, and {where} is a {type(module).__name__}; "
                    "use train or eval"
                )


def _converted(norm: nn.BatchNorm2d) -> SynchronisedBatchNorm2d:
    new = SynchronisedBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for tensors in (norm.named_parameters(), norm.named_buffers()):
        for name, tensor in tensors:
            setattr(new, name, tensor)
    return new.train(norm.training)
