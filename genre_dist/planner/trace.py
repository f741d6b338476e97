"""One training step on the meta device: which bytes are alive after every operation, for any batch, in one pass.

Meta tensors have shapes and no memory, so this takes seconds and no RAM for any model. Autograd runs as usual; a
dispatch mode sees every operation, and a storage counts from the operation that made it until Python frees it. The
batch size is a prime: a storage whose size it divides belongs to the samples, any other does not depend on the batch.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.models.text import TextEncoder
from genre_dist.stream.device_feed import FieldInput

PRIME_BATCH = 1009

RECURRENT_VALUES = 8
"""Assumed: numbers a recurrent kernel keeps per unit, token, layer and direction. Four gates, the cell before and
after, its tanh, the output; the contents of cuDNN's reserve space are not documented."""

KEPT_FP32 = ("native_layer_norm", "_softmax", "_log_softmax", "native_group_norm", "embedding")
"""Operations whose results autocast leaves in fp32."""


class Trace(NamedTuple):
    """Bytes alive after each operation of a forward and backward pass in fp32; weights and inputs are left out."""

    computed: NDArray[np.int64]  # [operations] bytes per sample in the compute type: half under bf16
    kept: NDArray[np.int64]  # [operations] bytes per sample in a type of their own
    fixed: NDArray[np.int64]  # [operations] bytes that do not depend on the batch, such as stacked weights
    gradients: NDArray[np.int64]  # [operations] bytes of gradients of parameters
    forward: int  # operations of the forward pass
    largest_gradient: int  # bytes of the largest storage that became gradients
    sample_input: int  # bytes of one sample's pixels and tokens

    @property
    def activations(self) -> int:
        """Bytes a sample keeps for the backward pass in fp32."""
        return int(self.computed[self.forward - 1] + self.kept[self.forward - 1]) + self.sample_input


def trace_step(model: GenreClassifier, image_size: int, tokens: int) -> Trace:
    """Run forward and backward of a model on the meta device with texts of so many tokens, then drop its gradients.

    Raises ValueError if an operation of the model has no meta form.
    """
    inputs = _inputs(model, image_size, tokens)
    given = [tensor for field in inputs.values() for tensor in field if isinstance(tensor, Tensor)]
    alive = _Alive([*model.parameters(), *model.buffers(), *given])
    for text in model.text_encoders.values():
        if isinstance(text, TextEncoder):
            text.rnn.forward = _recurrent_stand_in(text.rnn, alive)  # type: ignore[assignment]
        elif text.takes_wide_masks:
            _stand_in_for_attention(text)
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(alive.is_gradient)
    try:
        with alive:
            total = model(inputs).float().sum()
            forward = len(alive.rows)
            total.backward()
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the model cannot be planned: {str(error).partition(chr(10))[0]}") from error
    computed, kept, fixed, gradients = np.array(alive.rows, np.int64).T
    size = sum(f.values.numel() * f.values.element_size() for f in inputs.values() if f.values is not None)
    model.zero_grad(set_to_none=True)
    return Trace(
        computed // PRIME_BATCH,
        kept // PRIME_BATCH,
        fixed,
        gradients,
        forward,
        alive.largest_gradient,
        size // PRIME_BATCH,
    )


def _inputs(model: GenreClassifier, image_size: int, tokens: int) -> dict[str, FieldInput]:
    """Images [B, 3, S, S], tokens [B, T] and lengths [B] of the prime batch, on the meta device, by encoder."""
    images = torch.empty(PRIME_BATCH, 3, image_size, image_size, device="meta")
    texts = torch.empty(PRIME_BATCH, tokens, dtype=torch.long, device="meta")
    lengths: Any = torch.empty(PRIME_BATCH, dtype=torch.long, device="meta")
    fields = {part: FieldInput(images) for part in model.image_encoders}
    for part, encoder in model.number_encoders.items():
        fields[part] = FieldInput(torch.empty(PRIME_BATCH, encoder.inputs, device="meta"))
    return fields | {part: FieldInput(texts, lengths) for part in model.text_encoders}


COMPUTED, KEPT, FIXED, GRADIENT, OUTSIDE = range(5)  # kinds of storages; those outside are not counted


class _Alive(TorchDispatchMode):
    """Notes after every operation how many bytes are alive: [computed, kept, fixed, gradients]."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.rows: list[tuple[int, ...]] = []
        self.largest_gradient = 0
        self.in_fp32 = False
        """Whether the current operation's results stay in fp32 under autocast."""
        self._now = [0, 0, 0, 0]
        self._kind: dict[int, int] = {tensor.untyped_storage()._cdata: OUTSIDE for tensor in known}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._note(result, func)
        self.rows.append(tuple(self._now))
        return results

    def _note(self, tensor: Tensor, func: Any) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._kind:
            return
        halved = tensor.dtype == torch.float32 and func._opname not in KEPT_FP32 and not self.in_fp32
        kind = FIXED if size % PRIME_BATCH else COMPUTED if halved else KEPT
        self._kind[key], self._sizes[key] = kind, size
        self._now[kind] += size
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now[self._kind.pop(key)] -= self._sizes.pop(key)

    def is_gradient(self, parameter: Tensor) -> None:
        """Count a parameter's gradient among the gradients; several may lie in one storage."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if self._kind.get(key, GRADIENT) != GRADIENT:
            self._now[self._kind[key]] -= self._sizes[key]
            self._now[GRADIENT] += self._sizes[key]
            self._kind[key] = GRADIENT
            self.largest_gradient = max(self.largest_gradient, self._sizes[key])


class _Recurrent(torch.autograd.Function):
    """Stands in for a recurrent kernel, which has no meta form: the memory it keeps and the gradients it makes.

    Its tensors are fp32, under autocast too, as in `PooledStates`.
    """

    @staticmethod
    def forward(ctx: Any, alive: _Alive, inputs: Tensor, kept_values: int, width: int, *weights: Tensor) -> Tensor:
        ctx.alive, alive.in_fp32 = alive, True
        ctx.save_for_backward(inputs, inputs.new_empty(len(inputs), inputs.shape[1] * kept_values), *weights)
        output = inputs.new_empty(len(inputs), width)
        alive.in_fp32 = False
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, _, *weights = ctx.saved_tensors
        _, needs_inputs, _, _, *needs_weights = ctx.needs_input_grad
        ctx.alive.in_fp32 = True
        grads = [torch.empty_like(w) if needed else None for w, needed in zip(weights, needs_weights, strict=True)]
        grad_inputs = torch.empty_like(inputs) if needs_inputs else None
        ctx.alive.in_fp32 = False
        return None, grad_inputs, None, None, *grads


def _recurrent_stand_in(rnn: nn.RNNBase, alive: _Alive) -> Callable[[Tensor, Tensor], Tensor]:
    directions = 2 if rnn.bidirectional else 1
    kept_values = RECURRENT_VALUES * rnn.hidden_size * rnn.num_layers * directions
    weights = list(rnn.parameters())

    def forward(inputs: Tensor, lengths: Tensor) -> Tensor:
        return _Recurrent.apply(
            alive, inputs, kept_values, directions * rnn.hidden_size, *weights
        )  # [B, directions * H]

    return forward


class _Attention(torch.autograd.Function):
    """Stands in for a fused attention kernel: torch's meta form would keep the scores of all pairs of tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)  # [B, heads, T, width]
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _stand_in_for_attention(text: PretrainedText) -> None:
    """Let a transformer's layers call `_Attention`."""
    from transformers import AttentionInterface

    def attend(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> tuple[Tensor, None]:
        return cast(Tensor, _Attention.apply(query, key, value)).transpose(1, 2).contiguous(), None

    AttentionInterface.register("genre_dist_trace", attend)
    text.network.config._attn_implementation = "genre_dist_trace"
