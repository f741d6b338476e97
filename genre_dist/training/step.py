"""One optimizer step: micro-batches in, one exchange of gradients, one update."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genre_dist.models.batchnorm import no_statistics
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.world import World
from genre_dist.stream.batch import Batch, part_of
from genre_dist.stream.device_feed import Inputs, sent
from genre_dist.training.loss import Loss
from genre_dist.training.out_of_memory import is_out_of_memory


class StepResult(NamedTuple):
    """A step's totals over all ranks; they are tensors, so that only reading them waits for the device."""

    totals: Tensor  # [sum of losses, samples, bad samples, ranks asked to stop, ranks that ask to save]
    grad_norm: Tensor


class Figures:
    """A step's figures on their way to the host; the next step can be queued before they arrive."""

    def __init__(self, result: StepResult) -> None:
        figures = torch.cat([result.totals, result.grad_norm.reshape(1)])
        self._host = figures.to("cpu", non_blocking=True)  # into pinned memory
        self._arrived = torch.cuda.current_stream(figures.device).record_event() if figures.is_cuda else None

    def read(self) -> list[float]:
        """The totals and the gradient's norm; waits for the end of their step."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


class OutOfMemoryTogetherError(Exception):
    """A rank ran out of memory in a deferred step; all ranks have dropped their gradients and kept their weights."""


def agree(world: World, micro_batches: list[Batch], stop: bool, save: bool) -> Tensor:
    """Counts over all ranks before a step, in one collective: float32 [4] on the device.

    [samples, samples that could not be read, ranks asked to stop, ranks that ask for a checkpoint].
    """
    samples = sum(float(batch.weights.sum()) for batch in micro_batches)
    bad = sum(len(batch.faults) for batch in micro_batches)
    return world.sum(sent(torch.tensor([samples, bad, float(stop), float(save)]), world.device))


class TrainStep:
    """Forward and backward over a rank's micro-batches, then one update of the weights.

    The gradient is that of (sum of all samples' losses over all ranks) / (number of samples over all ranks). On a GPU
    the host never waits for the device: inputs come from pinned memory, results are read later.
    """

    def __init__(
        self,
        strategy: Strategy,
        world: World,
        loss: Loss,
        autocast: Callable[[], AbstractContextManager[Any]],
        clip_norm: float | None,
    ) -> None:
        self.strategy, self.world, self.loss, self.autocast, self.clip_norm = strategy, world, loss, autocast, clip_norm

    def take(
        self,
        micro_batches: list[Batch],
        prepare: Callable[[Batch], Inputs],
        counts: Tensor,
        deferred: bool = False,
        failed: Callable[[], None] = lambda: None,
    ) -> StepResult:
        """Take the step; `prepare` moves a micro-batch to the device, `counts` is the result of `agree`.

        A `deferred` step exchanges gradients only after all ranks have computed all their micro-batches; if one ran out
        of memory, that rank calls `failed` and all ranks raise OutOfMemoryTogetherError.
        """
        count = counts[0].clamp(min=1)
        losses = torch.zeros(1, device=self.world.device)

        def passes(batch: Batch, last: bool) -> None:
            losses.add_(self._passes(prepare(batch), count, last))

        if deferred:
            full = False
            try:
                for batch in micro_batches:
                    passes(batch, last=False)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                full = True
                failed()
            if self.world.any(full):
                self.strategy.optimizer.zero_grad(set_to_none=True)
                raise OutOfMemoryTogetherError
            if self.world.size > 1:
                passes(part_of(micro_batches[0], slice(0, 0)), last=True)  # a blank sample carries the exchange
        else:
            for number, batch in enumerate(micro_batches, 1):
                passes(batch, last=number == len(micro_batches))
        norm = self.strategy.step(self.clip_norm)
        return StepResult(torch.cat([self.world.sum(losses), counts]), norm)

    def _passes(self, inputs: Inputs, count: Tensor, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; returns the sum of its losses."""
        with self.strategy.micro_batch(last=last), _uncompiled() if inputs.odd else nullcontext():
            with self.autocast(), no_statistics(_parts(self.strategy.model, inputs.absent)):
                logits = self.strategy.forward(*inputs.for_model)
            loss = self.loss(logits, inputs.labels, inputs.weights)
            self.strategy.backward(loss / count)
        return loss.detach()


def _parts(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    return [model.get_submodule(name) for name in names]


def _uncompiled() -> AbstractContextManager[Any]:
    """A context in which compiled modules run eagerly: a size that comes once is not worth compiling."""
    return torch.compiler.set_stance("force_eager")
