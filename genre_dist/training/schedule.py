"""Learning rates and dropout as pure functions of the step, so that nothing has to be saved to resume it."""

import math

import numpy as np
from torch.optim import Optimizer

from genre_dist.config import OptimConfig
from genre_dist.stream.order import hash64


def lr_factor(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at a step (counted from 0): linear warm-up, then the schedule.

    Cosine: Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983, without restarts. Constant with a cool-down:
    Hägele et al. 2024, https://arxiv.org/abs/2405.18392.
    """
    warmup = min(optim.warmup_steps, total_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    if optim.schedule == "constant":
        cooldown = round(optim.cooldown_fraction * total_steps)
        left = max(0, total_steps - step) / cooldown if cooldown else 1.0
        share_of_peak = min(1.0, left)
    else:
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        share_of_peak = 1 - done if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return optim.final_lr_fraction + (1 - optim.final_lr_fraction) * share_of_peak


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's generator for a step (counted from 0) on a rank."""
    return int(hash64(seed, step, rank)[0] >> np.uint64(1))


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Each group's rate: its peak times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
