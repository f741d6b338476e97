"""What torch's CUDA kernels for synchronised BatchNorm compute, written out for a CPU.

After `aten/src/ATen/native/cuda/Normalization.cuh` of torch: a batch's statistics, those of several batches from the
first to the last, and the gradients.
"""

import torch
from torch import Tensor


def batch_norm_stats(values: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    values: Tensor,
    means: Tensor,
    inverse_deviations: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    mean, squares, seen = torch.zeros_like(means[0]), torch.zeros_like(means[0]), torch.zeros(())
    for other, inverse, count in zip(means, inverse_deviations, counts, strict=True):
        factor = 1 / (seen + count)  # infinite if the first counts are 0, which ends in NaN
        squares = squares + (inverse**-2 - eps) * count + (mean - other) ** 2 * seen * count * factor
        mean = seen * factor * mean + count * factor * other
        seen = seen + count
    running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
    running_var.copy_((1 - momentum) * running_var + momentum * squares / (seen - 1))
    return mean, (squares / seen + eps).rsqrt()


def batch_norm_elemt(
    values: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    output = (values - channels(mean)) * channels(inverse)
    if weight is not None and bias is not None:
        output = output * channels(weight) + channels(bias)
    return output


def batch_norm_backward_reduce(
    grad: Tensor, values: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, *needs: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = grad.sum((0, 2, 3))
    centred = (grad * (values - channels(mean))).sum((0, 2, 3))
    return total, centred, centred * inverse, total


def batch_norm_backward_elemt(
    grad: Tensor,
    values: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    total: Tensor,
    centred: Tensor,
    counts: Tensor,
) -> Tensor:
    assert counts.dtype == torch.int32
    share = 1 / counts.sum()
    scale = inverse if weight is None else inverse * weight
    through_deviation = (values - channels(mean)) * channels(centred * share * inverse**2)
    return (grad - channels(total * share) - through_deviation) * channels(scale)


def channels(values: Tensor) -> Tensor:
    return values[:, None, None]
