"""The text encoder: word vectors, then a stacked LSTM or GRU with pooling over its top layer's states."""

import contextlib
import warnings
from typing import Self, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from genre_dist.config import TextConfig
from genre_dist.config.model import Pooling
from genre_dist.stream.sample import PADDING

# a strategy that shards weights keeps them in buffers of its own: cuDNN copies them together at each call, some 20 MB
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")

Lengths: TypeAlias = Tensor | NDArray[np.int64]
"""Words of each text, int64 [B], on the host, so that no step waits for a GPU. DistributedDataParallel and FSDP2 move
every input tensor to the device, but not an array."""


class PooledStates(nn.RNNBase):
    """An LSTM or GRU that returns one vector a text: the states of its top layer, pooled over the valid steps.

    `pooling` is `last` (each direction's last valid state), `max` or `mean`. Parameters and their names are those of
    `nn.LSTM` / `nn.GRU` with `batch_first=True`. This module's own forward computes, so that wrappers which gather
    sharded parameters before a module's forward work.
    """

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        pooling: Pooling = "last",
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            mode, input_size, hidden_size, num_layers, batch_first=True, dropout=dropout, bidirectional=bidirectional
        )
        self.pooling = pooling

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Map inputs [B, T, D] with valid lengths int64 [B] (1..T), on the host, to [B, directions * hidden].

        The computation keeps the type of inputs and weights (fp32; on a GPU by TF32), under autocast too: autocast
        would run cuDNN's recurrent kernels in fp16, whatever its own type (`_cudnn_rnn_cast_reflatten` in torch's
        autocast_mode.cpp), whose gradients underflow without loss scaling; oneDNN's have bf16 on some CPUs only.
        """
        with torch.autocast(inputs.device.type, enabled=False):
            # on a CPU, packing makes an LSTM use a loop over time steps, not oneDNN's kernel; a GRU has no such kernel
            if self.mode == "LSTM" and inputs.device.type == "cpu":
                return self._padded_lstm(inputs, lengths)
            return self._packed(inputs, lengths)

    def _packed(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        # the host sorts, since torch's own sorting and unsorting would wait for the device
        descending, order = torch.sort(lengths.cpu(), descending=True)
        indices = torch.stack([order, order.argsort(), lengths.cpu()])  # [3, B]
        if inputs.is_cuda:
            indices = indices.pin_memory().to(inputs.device, non_blocking=True)
        order, inverse, lengths = indices
        packed = pack_padded_sequence(inputs.index_select(0, order), descending, batch_first=True)
        directions = 2 if self.bidirectional else 1
        start = inputs.new_zeros(self.num_layers * directions, len(inputs), self.hidden_size)
        weights = [getattr(self, name) for names in self._all_weights for name in names]
        options = (True, self.num_layers, self.dropout, self.training, self.bidirectional)
        if self.mode == "LSTM":
            outputs, states, _ = torch.lstm(packed.data, packed.batch_sizes, (start, start), weights, *options)
        else:
            outputs, states = torch.gru(packed.data, packed.batch_sizes, start, weights, *options)
        if self.pooling == "last":
            top = states[-directions:].index_select(1, inverse)  # [directions, B, H]
            return top.transpose(0, 1).flatten(1)
        steps = pad_packed_sequence(PackedSequence(outputs, packed.batch_sizes), batch_first=True)[0]
        return self._pool(steps.index_select(0, inverse), lengths)

    def _padded_lstm(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """The same without packing: padding comes last in both directions, so no valid step reads it."""
        lengths = lengths.to(inputs.device)
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        mirror = lengths[:, None] - 1 - steps  # [B, T]: the input position of each step of the backward direction
        mirror = torch.where(mirror >= 0, mirror, steps)  # padding keeps its position
        for layer in range(self.num_layers):
            if layer > 0:
                inputs = F.dropout(inputs, self.dropout, self.training)
            outputs = [self._run(inputs, f"_l{layer}")]
            if self.bidirectional:
                outputs.append(self._run(_reorder(inputs, mirror), f"_l{layer}_reverse"))
            if layer < self.num_layers - 1:
                inputs = torch.cat(outputs[:1] + [_reorder(output, mirror) for output in outputs[1:]], dim=2)
        return torch.cat([self._pool(output, lengths) for output in outputs], dim=1)

    def _pool(self, outputs: Tensor, lengths: Tensor) -> Tensor:
        """Pool a direction's outputs [B, T, H], in order of computation, over its valid steps: [B, H]."""
        if self.pooling == "last":
            last = (lengths - 1)[:, None, None].expand(-1, 1, outputs.shape[2])
            return outputs.gather(1, last).squeeze(1)
        padding = torch.arange(outputs.shape[1], device=outputs.device) >= lengths[:, None]  # [B, T]
        if self.pooling == "max":
            return outputs.masked_fill(padding[:, :, None], -torch.inf).amax(1)
        return outputs.masked_fill(padding[:, :, None], 0).sum(1) / lengths[:, None]

    def _run(self, inputs: Tensor, suffix: str) -> Tensor:
        """Run one direction of one layer over all steps: [B, T, D] -> [B, T, H]."""
        weights = [getattr(self, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        start = inputs.new_zeros(1, len(inputs), self.hidden_size)
        return torch.lstm(inputs, (start, start), weights, True, 1, 0.0, self.training, False, True)[0]


def _reorder(values: Tensor, order: Tensor) -> Tensor:
    """Reorder the steps of each row: values [B, T, D], order int64 [B, T]."""
    return values.gather(1, order[:, :, None].expand_as(values))


class TextEncoder(nn.Module):
    """Text -> encoding [encoding_size]: an embedding, then a recurrent network with pooled states.

    `vectors` float32 [V, D] are the word vectors of the vocabulary (row 0 padding, row 1 unknown words); without them
    the embedding starts random, `config.embedding_dim` wide, and is trained. `padding` is the padding token, whose
    vector is zero; without one no text reads what it is padded with, and every token has a vector. A sample's encoding
    depends neither on its batch's padding nor on the other samples. Raises ValueError if `vectors` are not
    [vocabulary_size, D].
    """

    def __init__(
        self, config: TextConfig, vocabulary_size: int, vectors: np.ndarray | None, padding: int | None = PADDING
    ) -> None:
        super().__init__()
        if vectors is not None and (vectors.ndim != 2 or len(vectors) != vocabulary_size):
            raise ValueError(
                f"the word vectors have shape {vectors.shape} for a vocabulary of {vocabulary_size} words: "
                "they are not of the same packing; pack the shards again"
            )
        self.frozen = config.frozen
        self.encoding_size = config.hidden * (2 if config.bidirectional else 1)
        width = config.embedding_dim if vectors is None else vectors.shape[1]
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=padding)
        with torch.no_grad():
            # without vectors: torch's N(0, 1), as a tenth of it left the LSTM untrained after 700 steps
            if vectors is not None:
                self.embedding.weight.copy_(torch.from_numpy(np.asarray(vectors, dtype=np.float32)))
            if padding is not None:
                self.embedding.weight[padding] = 0
        mode = config.arch.upper()
        self.rnn = PooledStates(
            mode,
            width,
            config.hidden,
            config.layers,
            dropout=config.dropout,
            bidirectional=config.bidirectional,
            pooling=config.pooling,  # type: ignore[arg-type]  # the config refuses the others
        )
        self._train_embedding = vectors is None or config.train_embedding
        self.freeze(config.frozen)
        self.train()

    def freeze(self, frozen: bool, through: str | None = None) -> None:
        """Freeze the encoder, or train it from the next `train()` on, and its word vectors if the config says so.

        It has no modules that are frozen one by one: the config refuses a `through`.
        """
        self.frozen = frozen
        self.requires_grad_(not frozen)
        self.embedding.requires_grad_(not frozen and self._train_embedding)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, except that a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, tokens: Tensor, lengths: Lengths) -> Tensor:
        """Map tokens int [B, T], padded with 0, and lengths [B] to encodings [B, encoding_size].

        A length of 0 counts as 1: the text is one padding token.
        """
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            if tokens.shape[1] == 0:  # no sample of the batch has a text
                tokens = F.pad(tokens, (0, 1), value=PADDING)
            return self.rnn(self.embedding(tokens), torch.as_tensor(lengths).clamp(min=1))
