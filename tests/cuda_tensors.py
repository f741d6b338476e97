"""Tensors of a GPU that is not there: a training step runs on torch's fake tensors, and what it does to a GPU is noted.

Fake tensors have shapes, types and a device and no memory; operations on them run through torch's dispatcher as ever.
torch's engine for backward passes is written in C++ and asks for the real device, so a small one in Python takes its
place. Recurrent kernels and those of synchronised BatchNorm have no fake form; here they are their shapes.
"""

import heapq
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genre_dist.models import classifier, text
from genre_dist.stream import device_feed as device
from genre_dist.stream import images

CUDA = torch.device("cuda", 0)
PACKAGE = str(Path(device.__file__).parents[1])
aten = torch.ops.aten
SIZED_BY_VALUES = {aten.nonzero.default, aten.masked_select.default, aten.unique_dim.default, aten._unique2.default}


class Noted(TorchDispatchMode):
    """What an operation does to a GPU: which host it makes wait for the device, and where; which types come out."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking: list[str] = []
        self.types: set[torch.dtype] = set()
        self.copies = self.collectives = 0
        self.calls: Counter[str] = Counter()
        self.step = 0
        self.streams = Streams(self)

    def block(self, what: str) -> None:
        """Note an operation that makes the host wait, with the line of ours that calls it."""
        ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        self.blocking.append(f"{where}: {what}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default):
            if args[0].is_cuda:
                self.block(f"a value is read ({func})")
            return 0 if func is aten._local_scalar_dense.default else False
        if func in (aten._to_copy.default, aten.copy_.default):
            self._note_copy(func, args, kwargs)
        if func in SIZED_BY_VALUES and args[0].is_cuda:
            self.block(f"a shape depends on values ({func})")
        if func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.block("a mask chooses, so a shape depends on values")
        self.collectives += func.namespace == "c10d"
        self.calls[func.overloadpacket.__name__] += 1
        results = func(*args, **kwargs)
        self.types |= {result.dtype for result in tree_leaves(results) if isinstance(result, Tensor) and result.is_cuda}
        return results

    def _note_copy(self, func: Any, args: Any, kwargs: Any) -> None:
        if func is aten.copy_.default:
            target, source = args[:2]
            to, waits = target.device, not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            pinned = is_pinned(target) if source.is_cuda else is_pinned(source)
        else:
            source, to = args[0], torch.device(kwargs.get("device") or args[0].device)
            waits = not kwargs.get("non_blocking")
            pinned = source.is_cuda or is_pinned(source)  # torch makes the host's side of it pinned
        if to.type == source.device.type:
            return
        self.copies += 1
        if waits:
            self.block(f"copied from {source.device.type} to {to.type}, and waited for")
        elif not pinned:
            self.block(f"copied from {source.device.type} to {to.type} through memory that is not pinned")


def is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor, "pinned", False)


class Stream:
    """A stream, the current one or one beside it; what waits on the device is noted."""

    def __init__(self, noted: Noted, name: str) -> None:
        self.noted, self.name = noted, name

    def record_event(self) -> Any:
        recorded = self.noted.step

        def synchronize() -> None:
            if recorded >= self.noted.step:  # an earlier step may be waited for: this one is queued behind it
                self.noted.block("this step's end is waited for")

        return SimpleNamespace(synchronize=synchronize)

    def wait_event(self, event: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def synchronize(self) -> None:
        self.noted.block(f"the stream {self.name} is waited for")


class Streams:
    """torch.cuda's streams."""

    def __init__(self, noted: Noted) -> None:
        self.noted, self.used = noted, list[str]()
        self.now = Stream(noted, "current")

    def make(self, device: torch.device | None = None) -> Stream:
        return Stream(self.noted, "beside")

    def current(self, device: torch.device | None = None) -> Stream:
        return self.now

    @contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        self.used.append(stream.name)
        try:
            yield
        finally:
            self.now = before


@contextmanager
def cuda_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Noted]:
    """Within it tensors may lie on `CUDA`; what they do is noted, and gradients flow."""
    caches = (images._mean_and_std, classifier.side_stream, device._copy_stream)
    for cache in caches:
        cache.cache_clear()
    noted = Noted()
    streams = noted.streams
    with monkeypatch.context() as patch:
        for name, stand_in in {
            "Stream": streams.make,
            "current_stream": streams.current,
            "stream": streams.use,
            "max_memory_allocated": lambda device=None: 0,
            "cudart": lambda: SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0),
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": lambda device=None: "NVIDIA H100 80GB HBM3",
            "is_bf16_supported": lambda including_emulation=True: True,
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.autograd, "_engine_run_backward", run_backward)
        patch.setattr(Tensor, "is_pinned", is_pinned)
        patch.setattr(Tensor, "pin_memory", pinned)
        patch.setattr(Tensor, "record_stream", lambda self, stream: None)
        patch.setattr(FakeTensor, "tolist", lambda tensor: reading(noted, tensor))
        patch.setattr(Tensor, "numpy", values(Tensor.numpy))
        for name in ("lstm", "gru"):
            patch.setattr(torch, name, recurrent)
        for name, kernel in NORM_KERNELS.items():
            patch.setattr(torch, name, kernel)
        patch.setattr(text, "pack_padded_sequence", pack)
        patch.setattr(text, "pad_packed_sequence", unpack)
        with FakeTensorMode(allow_non_fake_inputs=True), noted:
            yield noted
    for cache in caches:
        cache.cache_clear()


def pinned(tensor: Tensor, device: object = None) -> Tensor:
    copy: Any = tensor.clone()
    copy.pinned = True
    return copy


def reading(noted: Noted, tensor: Tensor) -> list[float]:
    if tensor.is_cuda:
        noted.block("values are read")
    return [0.0] * tensor.numel()


def values(plain: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda tensor: np.zeros(tensor.shape, np.float32) if isinstance(tensor, FakeTensor) else plain(tensor)


# ---- gradients


@torch.no_grad()
def run_backward(
    outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...], *_: object, **__: object
) -> tuple[Tensor, ...]:
    """What torch's engine does for `Tensor.backward`: each node once, after all that lies behind it."""
    waiting: dict[Any, int] = {}
    found = [output.grad_fn for output in outputs]
    seen = set(found)
    while found:
        for node, _index in found.pop().next_functions:
            if node is not None:
                waiting[node] = waiting.get(node, 0) + 1
                if node not in seen:
                    seen.add(node)
                    found.append(node)
    held: dict[Any, dict[int, Tensor]] = {}
    for output, gradient in zip(outputs, gradients, strict=True):
        held.setdefault(output.grad_fn, {})[output.output_nr] = gradient
    ready = [(-node._sequence_nr(), number, node) for number, node in enumerate(held) if not waiting.get(node)]
    while ready:
        _, _, node = heapq.heappop(ready)
        result = call(node, held.pop(node, {}))
        for number, ((behind, index), gradient) in enumerate(zip(node.next_functions, result, strict=True)):
            if behind is None:
                continue
            if gradient is not None:
                like = behind._input_metadata[index]  # gradients of what was broadcast or cast are given as they came
                gradient = gradient.sum_to_size(like.shape).to(like.dtype)
                grads = held.setdefault(behind, {})
                grads[index] = grads[index] + gradient if index in grads else gradient
            waiting[behind] -= 1
            if not waiting[behind]:
                heapq.heappush(ready, (-behind._sequence_nr(), id(behind) + number, behind))
    return ()


def call(node: Any, held: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients that a node hands on; a leaf keeps its own."""
    if not held:
        return (None,) * len(node.next_functions)
    if node.name().endswith("AccumulateGrad"):
        leaf = node.variable
        leaf.grad = held[0] if leaf.grad is None else leaf.grad + held[0]
        return ()
    given = [held.get(index) for index in range(len(node._input_metadata))]
    result = node.apply(*given) if hasattr(node, "apply") else node(*given)
    result = result if isinstance(result, tuple) else (result,)
    return result[: len(node.next_functions)]  # a Python function's tensors come first here, then what has no gradient


# ---- kernels without a fake form


def recurrent(data: Tensor, sizes: Tensor, start: Any, weights: list[Tensor], *options: Any) -> tuple[Tensor, ...]:
    """torch.lstm or torch.gru of a packed batch, as cuDNN would be called."""
    assert not torch.is_autocast_enabled("cuda"), "under autocast cuDNN's recurrent kernels run in fp16"
    assert data.dtype == weights[0].dtype == torch.float32
    first = start[0] if isinstance(start, tuple) else start  # [layers * directions, B, hidden]
    outputs, states = Recurrent.apply(data, first, *weights)
    return (outputs, states, states) if isinstance(start, tuple) else (outputs, states)


class Recurrent(torch.autograd.Function):
    """Outputs [steps, 2 * hidden] and last states [layers * 2, B, hidden]."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, first: Tensor, *weights: Tensor) -> Any:
        ctx.save_for_backward(data, *weights)
        return data.new_empty(len(data), 2 * first.shape[2]), torch.empty_like(first)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        data, *weights = ctx.saved_tensors
        return torch.empty_like(data), None, *map(torch.empty_like, weights)


def pack(inputs: Tensor, lengths: Tensor, batch_first: bool) -> Any:
    assert not lengths.is_cuda, "packing wants the lengths on the host, and would fetch them"
    return SimpleNamespace(data=inputs.flatten(0, 1), batch_sizes=lengths)


def unpack(packed: Any, batch_first: bool) -> tuple[Tensor, None]:
    return packed.data.unflatten(0, (len(packed.batch_sizes), -1)), None


NORM_KERNELS: dict[str, Callable[..., Any]] = {  # synchronised BatchNorm's, for values [B, C, H, W]
    "batch_norm_stats": lambda values, eps: (
        values.new_empty(values.shape[1], dtype=torch.float32),
        values.new_empty(values.shape[1], dtype=torch.float32),
    ),
    "batch_norm_gather_stats_with_counts": lambda values, means, *_: (means.amax(0), means.amax(0)),
    "batch_norm_elemt": lambda values, *_: torch.empty_like(values),
    "batch_norm_backward_reduce": lambda grad, values, mean, *_: tuple(torch.empty_like(mean) for _ in range(4)),
    "batch_norm_backward_elemt": lambda grad, values, *_: torch.empty_like(values),
}
