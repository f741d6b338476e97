"""The complete model: a text encoder and an image encoder, their concatenated encodings, one head per label."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genre_dist.config import ModelConfig, OptimConfig
from genre_dist.models.heads import Heads
from genre_dist.models.poster import PosterEncoder
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.models.text import Lengths, TextEncoder
from genre_dist.models.weights import load_state, read_state
from genre_dist.stream.sample import PADDING


class GenreClassifier(nn.Module):
    """(image, text) -> one logit per label. `text` or `poster` is None if the config omits that encoder.

    `vocabulary_size`, `vectors` and `padding` are TextEncoder's. `load_weights=False` reads and downloads no weights:
    for ranks that receive rank 0's, and before loading a checkpoint. Raises ValueError as the encoders do, and if
    `model.text.weights` holds no text encoder of this vocabulary and architecture.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_genres: int,
        image_size: int,
        vocabulary_size: int,
        vectors: np.ndarray | None,
        load_weights: bool = True,
        padding: int | None = PADDING,
    ) -> None:
        super().__init__()
        self.text: TextEncoder | PretrainedText | None = None
        if config.text.pretrained is not None:
            self.text = PretrainedText(config.text, vocabulary_size, load_weights)
        elif config.uses_text:
            self.text = TextEncoder(config.text, vocabulary_size, vectors, padding)
        self.poster = PosterEncoder(config.poster, image_size, load_weights) if config.uses_poster else None
        if self.text is not None and config.text.weights_file is not None and load_weights:
            _load_text(self.text, config.text.weights_file)
        encoding_size = sum(part.encoding_size for part in (self.text, self.poster) if part is not None)
        self.heads = Heads(encoding_size, config.heads.hidden, num_genres, config.heads.kernel)
        self.text_beside = True
        """On a GPU the text encoder runs concurrently with the image encoder, on its own stream, in both passes."""

    def forward(
        self,
        images: Tensor | None,
        tokens: Tensor | None,
        lengths: Lengths | None,
        encodings: Tensor | None = None,
    ) -> Tensor:
        """Map normalised images [B, 3, S, S], tokens int [B, T] and lengths int64 [B] to logits [B, num_genres].

        Inputs that the model does not use may be None. With `encodings` [B, E] of `encode` only the heads compute.
        """
        return self.heads(self.encode(images, tokens, lengths) if encodings is None else encodings)

    def encode(self, images: Tensor | None, tokens: Tensor | None, lengths: Lengths | None) -> Tensor:
        """Map the inputs of `forward` to the concatenated encodings [B, E]: the text's, then the image's."""
        if self.text is not None and (tokens is None or lengths is None):
            raise ValueError("this model reads overviews: tokens and lengths are needed")
        if self.poster is not None and images is None:
            raise ValueError("this model reads posters: images are needed")
        if self.text is None or tokens is None or lengths is None:
            assert self.poster is not None
            return self.poster(images)
        if self.poster is None:
            return self.text(tokens, lengths)
        if tokens.is_cuda and self.text_beside:
            return torch.cat(self._encode_side_by_side(images, tokens, lengths), dim=1)
        return torch.cat([self.text(tokens, lengths), self.poster(images)], dim=1)

    def _encode_side_by_side(self, images: Tensor | None, tokens: Tensor, lengths: Lengths) -> tuple[Tensor, Tensor]:
        """The encodings of texts and images, computed concurrently: a recurrent kernel alone leaves a GPU nearly idle.

        The text encoder runs second, so that the backward pass, which reverses the operations, begins with it;
        autograd runs each operation's backward on the stream of its forward.
        """
        assert self.text is not None
        assert self.poster is not None
        current, side = torch.cuda.current_stream(tokens.device), side_stream(tokens.device)
        ready = current.record_event()
        poster = self.poster(images)
        side.wait_event(ready)
        with torch.cuda.stream(side):
            text = self.text(tokens, lengths)
        current.wait_stream(side)
        tokens.record_stream(side)  # the allocator may reuse their memory only when both streams are done
        text.record_stream(current)
        return text, poster


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of the text encoder on a device."""
    return torch.cuda.Stream(device)


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: params, name, lr, weight_decay.

    Each part ('text', 'poster', 'heads') has its learning rate; its biases, norms and word vectors form a separate
    group ('text.no_decay') without weight decay. With `text_layer_decay` a pretrained text encoder has groups for each
    layer ('text.layer3'). Frozen parameters and empty groups are omitted.
    """
    rates = {"text": optim.text_lr, "poster": optim.poster_lr, "heads": optim.heads_lr}
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


def _load_text(encoder: TextEncoder | PretrainedText, file: str) -> None:
    state = {name.removeprefix("module."): v for name, v in read_state(file, "model.text.weights").items()}
    own = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
    if not own:
        raise ValueError(f"model.text.weights={file} holds no text encoder (no tensor is named text.*)")
    load_state(encoder, own, f"model.text.weights={file}", "the text encoder", "vocabulary or architecture")
