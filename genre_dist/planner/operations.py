"""The operations of a training step, their FLOP and their bytes, recorded without a GPU and without memory.

Forward and backward pass run on fake tensors (shapes and types without content) under bf16 autocast as in training, so
that every cast is recorded; their device is a CPU, as a fake GPU tensor needs a real GPU. A dispatch mode sees each
operation and counts its operands as read once and its results as written once: a lower bound for a separate kernel if
caches keep nothing between kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from genre_dist.config import Config
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.levers import pull_levers
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.planner.planned_model import Vocabulary, meta_model
from genre_dist.planner.sizes import TYPICAL_TOKENS
from genre_dist.planner.throughput import text_of
from genre_dist.stream import images

CONVOLUTION, CONVOLUTION_BACKWARD = "convolutions, forward", "convolutions, backward"
BATCH_NORM, ELEMENTWISE = "BatchNorm", "ReLU, add, pooling"
CASTS, PRODUCTS, HEADS, PIXELS = "casts to bf16 and back", "matrix products", "heads", "input pixels"
TEXT = "pretrained text encoder"


@dataclass
class Operation:
    """An operation on the GPU with the memory that it reads and writes: (storage, bytes)."""

    name: str
    kind: str
    backward: bool
    flops: float
    """2 for a multiply-add."""
    precision: str
    """The type of its products: bf16, tf32 or fp32."""
    reads: list[tuple[int, int]]
    again: int
    """Bytes that a second pass reads."""
    writes: list[tuple[int, int]]
    joined: bool = False
    """Whether compilation fuses it into the kernel of an earlier operation."""

    def __post_init__(self) -> None:
        self.eager = self.again + sum(size for _, size in self.reads + self.writes)
        """Bytes read and written by a kernel of its own."""
        self.compiled = self.eager
        """Bytes read and written after fusion."""


def trace_operations(
    config: Config, vocabulary: Vocabulary, precision: str, samples: int, packed_size: int
) -> list[Operation]:
    """The operations of a micro-batch, from uint8 images of side `packed_size` to gradients, without a recurrent
    text encoder; one of a transformer reads texts of typical length.

    Raises ValueError if the model cannot run on fake tensors.
    """
    model = meta_model(config, vocabulary, on_gpu=True)
    pull_levers(model, config.train, torch.device("cpu"))  # compiles nothing there
    model.train()
    try:
        pixels = [operation for _ in model.image_encoders for operation in _pixels(config, samples, packed_size)]
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            return pixels + _passes(model, config, precision == "bf16", samples)
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the model cannot be timed: {str(error).partition(chr(10))[0]}") from error


def _pixels(config: Config, samples: int, packed_size: int) -> list[Operation]:
    size = config.data.image_size
    raw = torch.empty(samples, packed_size, packed_size, 3, dtype=torch.uint8, device="meta")
    with Recorder(PIXELS) as recorder:
        if config.data.shows_whole_posters:
            images.whole(raw, size)
        else:
            images.cropped(raw, torch.empty(samples, 4, device="meta"), size)
    return recorder.operations()


def text_length(config: Config) -> int:
    """Tokens of a typical text."""
    return min(TYPICAL_TOKENS, config.data.max_tokens)


def _passes(model: GenreClassifier, config: Config, half: bool, samples: int) -> list[Operation]:
    """Forward and backward pass of the transformers, of the image networks, then of the heads."""
    text, network, heads = Recorder(TEXT), Recorder(None), Recorder(HEADS)
    made: list[tuple[Recorder, Tensor]] = []
    encodings = [torch.empty(samples, encoder.encoding_size) for encoder in model.number_encoders.values()]
    for reader in model.text_encoders.values():
        if isinstance(reader, PretrainedText):
            inputs = text_of(samples, text_length(config), torch.device("cpu"))
            with text, torch.autocast("cpu", torch.bfloat16, enabled=half):
                made.append((text, reader(*inputs)))
        else:
            encodings.append(torch.empty(samples, reader.encoding_size, requires_grad=not reader.frozen))
    size = config.data.image_size
    images = torch.empty(samples, 3, size, size).to(memory_format=torch.channels_last)
    for encoder in model.image_encoders.values():
        with network, torch.autocast("cpu", torch.bfloat16, enabled=half):
            made.append((network, encoder(images)))
    # cuts the graph before the heads
    cut = [encoding.detach().requires_grad_(encoding.requires_grad) for _, encoding in made]
    with heads, torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model.heads(torch.cat([*encodings, *cut], dim=1))
    with heads.going_back():
        logits.float().sum().backward()
    for (recorder, encoding), end in zip(made, cut, strict=True):
        if encoding.requires_grad:
            with recorder.going_back():
                encoding.backward(end.grad)
    return text.operations() + network.operations() + heads.operations()


class Recorder(TorchDispatchMode):
    """Records every operation that touches memory, all as of one kind or each by its name."""

    def __init__(self, kind: str | None) -> None:
        super().__init__()
        self._kind, self._backward = kind, False
        self._seen: list[Operation] = []
        self._kept: list[Any] = []  # keeps storages alive, so that addresses identify them

    @contextmanager
    def going_back(self) -> Iterator[None]:
        """Record a backward pass."""
        self._backward = True
        with self:
            yield

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def operations(self) -> list[Operation]:
        """All recorded operations, in order."""
        if self._kind is None:
            _share_kernels(self._seen)
        return self._seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(results)
        known = {_storage(tensor) for tensor in given}
        written = [tensor for tensor in made if func._schema.is_mutable or _storage(tensor) not in known]
        if not written or "empty" in func._opname:  # a view, or memory without content
            return results
        self._kept += [tensor.untyped_storage() for tensor in made]
        count = flop_registry.get(func._overloadpacket)
        kind = self._kind or _kind(func._opname, count is not None)
        self._seen.append(
            Operation(
                name=func._opname,
                kind=kind,
                backward=self._backward,
                flops=count(*args, **kwargs, out_val=results) if count else 0,
                precision=_precision(made[0], func._opname),
                reads=[(_storage(tensor), _size(tensor)) for tensor in given],
                again=_read_again(func._opname, args),
                writes=[(_storage(tensor), _size(tensor)) for tensor in written],
            )
        )
        return results


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor in memory: an expanded one has more elements than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _kind(name: str, has_products: bool) -> str:
    if name.startswith("convolution"):
        return CONVOLUTION_BACKWARD if name.endswith("backward") else CONVOLUTION
    if "batch_norm" in name:
        return BATCH_NORM
    if name == "_to_copy":
        return CASTS
    return PRODUCTS if has_products else ELEMENTWISE


def _precision(result: Tensor, name: str) -> str:
    """By default torch uses TF32 for convolutions, and not for matrix products."""
    if result.dtype == torch.bfloat16:
        return "bf16"
    return "tf32" if name.startswith("convolution") else "fp32"


def _read_again(name: str, args: Any) -> int:
    """Bytes of a second pass: BatchNorm reads its input for statistics and again for values, a convolution's backward
    reads for two gradients."""
    if name == "native_batch_norm":
        training = args[5]
        return _size(args[0]) if training else 0
    if name == "native_batch_norm_backward":
        training = args[7]
        return _size(args[0]) + _size(args[1]) if training else 0
    if name == "convolution_backward":
        of_input, of_weight, _ = args[-1]
        return _size(args[0]) if of_input and of_weight else 0
    return 0


# --- compiled


def _share_kernels(operations: list[Operation]) -> None:
    """Count the bytes of operations if those of a run are fused into one kernel.

    Intermediate tensors are neither written nor read, unless they are needed later; BatchNorm's second pass stays.
    """
    last_read = {storage: number for number, operation in enumerate(operations) for storage, _ in operation.reads}
    for run in _runs(operations):
        near: set[int] = set()  # read or made in this kernel
        stored: set[int] = set()
        for number in run:
            operation = operations[number]
            fetched = {storage: size for storage, size in operation.reads if storage not in near}
            last = {storage: last_read.get(storage, -1) for storage, _ in operation.writes}
            kept = {  # read after this kernel, or a result that nothing here reads
                storage: size
                for storage, size in operation.writes
                if storage not in stored and (last[storage] > run[-1] or last[storage] <= number)
            }
            operation.compiled = operation.again + sum(fetched.values()) + sum(kept.values())
            operation.joined = number != run[0]
            near |= {*fetched, *last}
            stored |= kept.keys()


def _runs(operations: list[Operation]) -> Iterator[list[int]]:
    """BatchNorm and elementwise operations that follow one another; casts of weights between them do not count.

    Convolutions and products end a run, and so do the forward pass's end and a sum of gradients, at a block's edge.
    """
    run: list[int] = []
    before = False
    for number, seen in enumerate(operations):
        if run and (seen.backward != before or seen.kind in (CONVOLUTION, CONVOLUTION_BACKWARD, PRODUCTS)):
            yield run
            run = []
        before = seen.backward
        if seen.kind in (BATCH_NORM, ELEMENTWISE):
            run.append(number)
        if run and seen.backward and seen.name == "add":
            yield run
            run = []
    if run:
        yield run
