"""The complete model: an encoder for each field, their concatenated encodings, one head per label."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genre_dist.config import ModelConfig, OptimConfig
from genre_dist.models.heads import Heads
from genre_dist.models.numbers import NumbersEncoder
from genre_dist.models.poster import PosterEncoder
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.models.text import TextEncoder
from genre_dist.models.weights import load_state, read_state
from genre_dist.schema import TMDB, Schema
from genre_dist.stream.device_feed import FieldInput
from genre_dist.stream.sample import PADDING


class GenreClassifier(nn.Module):
    """The fields of samples -> one logit per label: an encoder for each field, then the heads.

    `schema` declares the fields; those whose kind the config omits have no encoder. `vocabulary_size`, `vectors` and
    `padding` are TextEncoder's. `load_weights=False` reads and downloads no weights: for ranks that receive rank 0's,
    and before loading a checkpoint. Raises ValueError as the encoders do, and if `model.text.weights` holds no text
    encoder of this vocabulary and architecture.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_labels: int,
        image_size: int,
        vocabulary_size: int,
        vectors: np.ndarray | None,
        load_weights: bool = True,
        schema: Schema = TMDB,
        padding: int | None = PADDING,
    ) -> None:
        super().__init__()
        self.parts: tuple[str, ...] = tuple(field.part for field in config.fields(schema))
        """The names of the encoders, in the order of their encodings."""
        if taken := [part for part in self.parts if hasattr(self, part)]:
            raise ValueError(f"a field cannot be called {taken[0]}, which is a name of torch's; give it another")
        for field in config.fields(schema):
            if field.kind == "text":
                text: TextEncoder | PretrainedText
                if config.text.pretrained is not None:
                    text = PretrainedText(config.text, vocabulary_size, load_weights)
                else:
                    text = TextEncoder(config.text, vocabulary_size, vectors, padding)
                if config.text.weights_file is not None and load_weights:
                    _load_text(text, field.part, config.text.weights_file)
                self.add_module(field.part, text)
            elif field.kind == "image":
                self.add_module(field.part, PosterEncoder(config.poster, image_size, load_weights))
            else:
                self.add_module(field.part, NumbersEncoder(config.numbers, len(field.columns)))
        sizes = {part: int(encoder.encoding_size) for part, encoder in self.encoders.items()}
        self.encoding_size = sum(sizes.values())
        self.missing = MissingFields(sizes) if config.learns_missing else None
        self.heads = Heads(self.encoding_size, config.heads.hidden, num_labels, config.heads.kernel)
        self.text_beside = True
        """On a GPU text encoders run concurrently with the image encoders, on their own stream, in both passes."""

    @property
    def encoders(self) -> dict[str, Any]:
        """The encoders by name."""
        return {part: self._modules[part] for part in self.parts}

    @property
    def text_encoders(self) -> dict[str, TextEncoder | PretrainedText]:
        """The text encoders by name."""
        kinds = (TextEncoder, PretrainedText)
        return {part: encoder for part, encoder in self.encoders.items() if isinstance(encoder, kinds)}

    @property
    def number_encoders(self) -> dict[str, NumbersEncoder]:
        """The encoders of numbers by name."""
        return {part: encoder for part, encoder in self.encoders.items() if isinstance(encoder, NumbersEncoder)}

    @property
    def image_encoders(self) -> dict[str, PosterEncoder]:
        """The image encoders by name."""
        return {part: encoder for part, encoder in self.encoders.items() if isinstance(encoder, PosterEncoder)}

    def forward(self, fields: Mapping[str, FieldInput], encodings: Tensor | None = None) -> Tensor:
        """Map the fields of n samples, by name of their encoder, to logits [n, labels].

        With `encodings` [n, E] of `encode` only the heads compute. Raises ValueError without a field that an encoder
        needs.
        """
        encodings = self.encode(fields) if encodings is None else encodings
        return self.logits(encodings, {part: field.has for part, field in fields.items()})

    def logits(self, encodings: Tensor, has: Mapping[str, Tensor | None] | None = None) -> Tensor:
        """Map encodings [n, E] to logits [n, labels]; has: bool [n] by encoder, None: all samples have that field."""
        return self.heads(encodings if self.missing is None else self.missing(encodings, has or {}))

    def encode(self, fields: Mapping[str, FieldInput]) -> Tensor:
        """Map the fields to the encodings of all encoders side by side, [n, E]; zeros where a sample lacks a field."""
        if lacking := [part for part in self.parts if part not in fields]:
            raise ValueError(f"this model reads {' and '.join(self.parts)}, and {' and '.join(lacking)} is not given")
        encodings = self._encode_each(fields)
        joined = [_placed(encodings[part], fields[part]) for part in self.parts]
        return joined[0] if len(joined) == 1 else torch.cat(joined, dim=1)

    def _encode_each(self, fields: Mapping[str, FieldInput]) -> dict[str, Tensor]:
        """The encodings of the values that are there, [m, E] each."""
        texts = self.text_encoders
        first = fields[self.parts[0]].values
        if first is None or not (first.is_cuda and self.text_beside and 0 < len(texts) < len(self.parts)):
            return {part: self._encode(part, fields[part]) for part in self.parts}
        return self._encode_side_by_side(fields, first.device)

    def _encode(self, part: str, field: FieldInput) -> Tensor:
        encoder = self.encoders[part]
        encoding: Tensor = encoder(field.values) if field.lengths is None else encoder(field.values, field.lengths)
        return encoding

    def _encode_side_by_side(self, fields: Mapping[str, FieldInput], device: torch.device) -> dict[str, Tensor]:
        """The same, concurrently on a GPU: a recurrent kernel alone leaves it nearly idle.

        The text encoders run second, so that the backward pass, which reverses the operations, begins with them;
        autograd runs each operation's backward on the stream of its forward.
        """
        texts = self.text_encoders
        current, side = torch.cuda.current_stream(device), side_stream(device)
        ready = current.record_event()
        encodings = {part: self._encode(part, fields[part]) for part in self.parts if part not in texts}
        side.wait_event(ready)
        with torch.cuda.stream(side):
            encodings |= {part: self._encode(part, fields[part]) for part in texts}
        current.wait_stream(side)
        for part in texts:  # the allocator may reuse their memory only when both streams are done
            tokens = fields[part].values
            assert tokens is not None
            tokens.record_stream(side)
            encodings[part].record_stream(current)
        return encodings


class MissingFields(nn.Module):
    """A learned vector for each field, in place of the encoding of a sample that lacks it; sizes by encoder."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        for part, size in sizes.items():
            self.register_parameter(part, nn.Parameter(torch.zeros(size)))

    def forward(self, encodings: Tensor, has: Mapping[str, Tensor | None]) -> Tensor:
        """Fill the encodings [n, E] of all encoders; has: bool [n] by encoder, None: no sample lacks the field."""
        parts = []
        for (part, vector), encoding in zip(
            self.named_parameters(), encodings.split(list(self.sizes.values()), dim=1), strict=True
        ):
            there = has.get(part)
            if there is None:
                there = torch.ones(len(encodings), dtype=torch.bool, device=encodings.device)
            # used in every batch, so that every rank has a gradient for it
            parts.append(torch.where(there[:, None], encoding, vector))
        return torch.cat(parts, dim=1)


def _placed(encoding: Tensor, field: FieldInput) -> Tensor:
    """A part's encodings [m, E] at the places of their samples: [n, E], zeros where a sample lacks the field.

    All samples without the field read the first row, whose gradient from them is 0: a sum of zeros in any order.
    """
    if field.at is None or field.has is None:
        return encoding
    return torch.where(field.has[:, None], encoding.index_select(0, field.at), 0)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of the text encoder on a device."""
    return torch.cuda.Stream(device)


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: params, name, lr, weight_decay.

    Each part ('text', 'poster', 'heads') has the learning rate of its kind, an encoder of numbers that of the heads;
    its biases, norms and word vectors form a separate group ('text.no_decay') without weight decay. With
    `text_layer_decay` a pretrained text encoder has groups for each layer ('text.layer3'). Frozen parameters and empty
    groups are omitted.
    """
    rates = {"heads": optim.heads_lr, "missing": optim.heads_lr}
    if isinstance(model, GenreClassifier):
        others = dict.fromkeys(model.parts, optim.heads_lr)
        rates |= (
            others
            | dict.fromkeys(model.text_encoders, optim.text_lr)
            | dict.fromkeys(model.image_encoders, optim.poster_lr)
        )
    groups = []
    for part, module in model.named_children():
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        for layer, share, parameters in _layers(module, optim.text_layer_decay):
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            plain = [p for p in trained if p.ndim <= 1 or id(p) in embeddings]
            decayed = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
            for name, params, decay in (
                (f"{part}{layer}", decayed, optim.weight_decay),
                (f"{part}{layer}.no_decay", plain, 0.0),
            ):
                if params:
                    groups.append({"params": params, "name": name, "lr": rates[part] * share, "weight_decay": decay})
    return groups


def _layers(module: nn.Module, decay: float) -> list[tuple[str, float, list[nn.Parameter]]]:
    """The parameters of a part, or of each layer of a pretrained text encoder: end of the name, share of the rate."""
    if decay == 1 or not isinstance(module, PretrainedText):
        return [("", 1.0, list(module.parameters()))]
    return [(f".{depth.name}", decay**depth.below, depth.parameters) for depth in module.depths()]


def count_parameters(model: GenreClassifier) -> dict[str, tuple[int, int]]:
    """Return the numbers of trained and of frozen parameters of each part of the model."""
    counts = {}
    for part, module in model.named_children():
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        counts[part] = (trained, sum(p.numel() for p in module.parameters()) - trained)
    return counts


def _load_text(encoder: TextEncoder | PretrainedText, part: str, file: str) -> None:
    state = {name.removeprefix("module."): v for name, v in read_state(file, "model.text.weights").items()}
    own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
    if not own:
        raise ValueError(f"model.text.weights={file} holds no text encoder (no tensor is named {part}.*)")
    load_state(encoder, own, f"model.text.weights={file}", "the text encoder", "vocabulary or architecture")
