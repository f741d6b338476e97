"""One optimizer step: micro-batches in, one exchange of gradients, one update."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genre_dist.models.batchnorm import no_statistics
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.world import World
from genre_dist.stream.batch import Batch, part_of
from genre_dist.stream.device import Inputs, sent
from genre_dist.training.loss import Loss, loss_sum
from genre_dist.training.out_of_memory import is_out_of_memory


class StepResult(NamedTuple):
    """What a step knows of itself over all ranks; tensors, so that nobody waits for the device before they are read."""

    totals: Tensor  # [sum of losses, samples, bad samples, ranks asked to stop, ranks that ask to save]
    grad_norm: Tensor


class Figures:
    """A step's figures on their way to the host, behind the step itself; the next step can be queued meanwhile."""

    def __init__(self, result: StepResult) -> None:
        figures = torch.cat([result.totals, result.grad_norm.reshape(1)])
        self._host = figures.to("cpu", non_blocking=True)  # into pinned memory
        self._arrived = torch.cuda.current_stream(figures.device).record_event() if figures.is_cuda else None

    def read(self) -> list[float]:
        """The totals and the gradient's norm; waits for the end of the step they are of."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


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
    failed: Callable[[], None] = lambda: None,
) -> StepResult:
    """Forward and backward over the rank's micro-batches, then one update of the weights.

    The gradient is that of (sum of all samples' losses over all ranks) / (number of samples over all ranks).

    A `careful` step exchanges nothing before all ranks are through their micro-batches; it raises
    OutOfMemoryTogetherError on all of them if one of them ran out of memory, after a call of `failed` on that rank.

    On a GPU nothing here waits for the device: what goes there comes from pinned memory, what comes back is read later.
    """
    samples = sum(float(batch.weights.sum()) for batch in micro_batches)
    bad = sum(len(batch.faults) for batch in micro_batches)
    counts = world.sum(sent(torch.tensor([samples, bad, float(stop), float(save)]), world.device))  # [4]
    count = counts[0].clamp(min=1)
    losses = torch.zeros(1, device=world.device)

    def passes(batch: Batch, last: bool) -> None:
        inputs = prepare(batch)
        with strategy.micro_batch(last=last), _uncompiled() if inputs.odd else nullcontext():
            with autocast(), no_statistics(strategy.model) if inputs.blank else nullcontext():
                logits = strategy.forward(*inputs.for_model)
            batch_loss = loss(logits, inputs.labels, inputs.weights)
            strategy.backward(batch_loss / count)
        losses.add_(batch_loss.detach())

    if careful:
        full = False
        try:
            for batch in micro_batches:
                passes(batch, last=False)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            full = True
            failed()
        if world.any(full):
            strategy.optimizer.zero_grad(set_to_none=True)
            raise OutOfMemoryTogetherError
        if world.size > 1:
            passes(part_of(micro_batches[0], slice(0, 0)), last=True)  # a blank sample, which carries the exchange
    else:
        for number, batch in enumerate(micro_batches, 1):
            passes(batch, last=number == len(micro_batches))
    norm = strategy.step(clip_norm)
    return StepResult(torch.cat([world.sum(losses), counts]), norm)


def _uncompiled() -> AbstractContextManager[Any]:
    """Within it, what is compiled runs as it was written, and nothing is compiled for a size that comes once."""
    return torch.compiler.set_stance("force_eager")
