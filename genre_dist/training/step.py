"""One optimizer step: micro-batches in, one exchange of gradients, one update."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genre_dist.models.batchnorm import no_statistics
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.world import World
from genre_dist.stream.reader import Batch, part_of
from genre_dist.training.inputs import Inputs
from genre_dist.training.loss import Loss, loss_sum


class StepResult(NamedTuple):
    """What a step knows of itself over all ranks; tensors, so that nobody waits for the device before they are read."""

    totals: Tensor  # [sum of losses, samples, bad samples, ranks asked to stop, ranks that ask to save]
    grad_norm: Tensor


class OutOfMemoryTogetherError(Exception):
    """Some rank ran out of memory in a careful step; gradients are dropped, weights as they were, on all ranks."""


def train_step(
    strategy: Strategy,
    micro_batches: list[Batch],
    prepare: Callable[[Batch], Inputs],
    autocast: Callable[[], AbstractContextManager[Any]],
    world: World,
    clip_norm: float | None,
    stop: bool,
    save: bool = False,
    loss: Loss = loss_sum,
    careful: bool = False,
) -> StepResult:
    """Forward and backward over the rank's micro-batches, then one update of the weights.

    The gradient is that of (sum of all samples' losses over all ranks) / (number of samples over all ranks).

    A `careful` step exchanges nothing before all ranks are through their micro-batches; it raises
    OutOfMemoryTogetherError on all of them if one of them ran out of memory.
    """
    samples = sum(float(batch.weights.sum()) for batch in micro_batches)
    bad = sum(len(batch.faults) for batch in micro_batches)
    counts = world.sum(torch.tensor([samples, bad, float(stop), float(save)], device=world.device))  # [4]
    count = counts[0].clamp(min=1)
    losses = torch.zeros(1, device=world.device)

    def passes(batch: Batch, last: bool) -> None:
        inputs = prepare(batch)
        with strategy.micro_batch(last=last):
            with autocast(), no_statistics(strategy.model) if inputs.blank else nullcontext():
                logits = strategy.forward(*inputs.for_model)
            batch_loss = loss(logits, inputs.labels, inputs.weights)
            strategy.backward(batch_loss / count)
        losses.add_(batch_loss.detach())

    if careful:
        failed = False
        try:
            for batch in micro_batches:
                passes(batch, last=False)
        except torch.OutOfMemoryError:
            failed = True
        if world.any(failed):
            strategy.optimizer.zero_grad(set_to_none=True)
            raise OutOfMemoryTogetherError
        if world.size > 1:
            passes(part_of(micro_batches[0], slice(0, 0)), last=True)  # a blank sample, which carries the exchange
    else:
        for number, batch in enumerate(micro_batches, 1):
            passes(batch, last=number == len(micro_batches))
    norm = strategy.step(clip_norm)
    return StepResult(torch.cat([world.sum(losses), counts]), norm)
