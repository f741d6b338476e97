"""The image encoder's passes as CUDA graphs: the host launches each pass as a whole, not its thousands of kernels.

A ResNet152 launches some 2,000 kernels a step. A host slower than the GPU computes them bounds the speed: an H100 took
88 ms a step for batches of 64 and of 128 alike.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

EAGER_CALLS = 2
"""Calls of one kind in a row before a capture: libraries choose kernels in them and blocks are compiled, and a size
that comes once at an epoch's end is not captured."""
MOST_MEMORY = 0.45
"""Share of the GPU's memory that eager steps may have used: a graph keeps as much memory in addition."""


def graph_passes(network: nn.Module) -> None:
    """Let a network replay its training passes from CUDA graphs, from the third call of a kind on.

    Calls are of a kind if the images' shape, the trained weights, the modules' modes and autocast are the same. Results
    are those of the eager passes: the same kernels run. Evaluation stays eager. A network that cannot be captured, or a
    GPU too full for it, stays eager too, and one line says why. Parameters must stay where they are in memory.
    """
    network.forward = _Graphed(network, network.forward)


class _Graphed:
    """A network's forward function, which captures and replays."""

    def __init__(self, network: nn.Module, eager: Callable[[Tensor], Tensor]) -> None:
        self.eager = eager
        self.modules, self.weights = list(network.modules()), list(network.parameters())
        self.kind: tuple[Any, ...] | None = None
        self.calls = 0
        self.passes: _Passes | None = None
        self.works = True

    def __call__(self, images: Tensor) -> Tensor:
        if not (self.works and images.is_cuda and torch.is_grad_enabled()):
            return self.eager(images)
        trained = [weight for weight in self.weights if weight.requires_grad]
        kind = (
            images.shape,
            images.dtype,
            torch.is_autocast_enabled("cuda"),
            tuple(map(id, trained)),
            tuple(module.training for module in self.modules),
        )
        if self.passes is None or kind != self.passes.kind:
            self.calls = self.calls + 1 if kind == self.kind else 1
            self.kind = kind
            if not trained or self.calls <= EAGER_CALLS or not self._capture(images, trained, kind):
                return self.eager(images)
        self.calls = 0  # of another kind in a row
        output: Tensor = _Replay.apply(self.passes, images, *trained)
        return output

    def _capture(self, images: Tensor, trained: Sequence[Tensor], kind: tuple[Any, ...]) -> bool:
        """Capture both passes; False, and a line, where that cannot be. Raises OutOfMemoryError."""
        self.passes = None  # frees an earlier capture's memory
        used = torch.cuda.max_memory_allocated(images.device)
        whole = torch.cuda.get_device_properties(images.device).total_memory
        if used > MOST_MEMORY * whole:
            return self._stay_eager(f"steps use {used / whole:.0%} of the GPU's memory, and a graph as much again")
        try:
            self.passes = _Passes(self.eager, images, trained, kind)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation that waits for the GPU, or copies from pageable memory
            return self._stay_eager(str(error).partition("\n")[0])
        return True

    def _stay_eager(self, why: str) -> bool:
        self.works = False
        print(f"the image encoder runs without a CUDA graph: {why}", file=sys.stderr, flush=True)
        return False


class _Passes:
    """A captured forward and backward pass, with the memory they read and write."""

    def __init__(
        self, eager: Callable[[Tensor], Tensor], images: Tensor, trained: Sequence[Tensor], kind: tuple[Any, ...]
    ) -> None:
        self.kind = kind
        self.images = images.clone()  # keeps the memory format
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        kept_type = torch.get_autocast_dtype("cuda")
        # `thread_local`: a checkpoint's thread may copy meanwhile
        with (
            torch.cuda.graph(self.forward, pool=pool, capture_error_mode="thread_local"),
            # weights are cast anew in each replay
            torch.autocast("cuda", kept_type, torch.is_autocast_enabled("cuda"), cache_enabled=False),
        ):
            output = eager(self.images)
        self.grad = torch.empty_like(output)
        with (
            torch.cuda.graph(self.backward, pool=pool, capture_error_mode="thread_local"),
            torch.autocast("cuda", enabled=False),
        ):
            self.grads = torch.autograd.grad(output, trained, self.grad, allow_unused=True)
        self.output = output.detach()
        self.reached = [grad for grad in self.grads if grad is not None]

    def fresh_grads(self) -> list[Tensor | None]:
        """Copies of the gradients: autograd may keep what it gets, and the next replay overwrites these."""
        copies = iter(torch._foreach_mul(self.reached, 1))
        return [None if grad is None else next(copies) for grad in self.grads]


class _Replay(torch.autograd.Function):
    """The captured passes as one operation of images and weights."""

    @staticmethod
    def forward(ctx: Any, passes: _Passes, images: Tensor, *trained: Tensor) -> Tensor:
        ctx.passes = passes
        passes.images.copy_(images)
        passes.forward.replay()
        return passes.output.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.passes.grad.copy_(grad)
        ctx.passes.backward.replay()
        return None, None, *ctx.passes.fresh_grads()
