"""Attributions of a genre's logit: Grad-CAM on the poster, integrated gradients on the words.

Selvaraju et al. 2017, Grad-CAM; Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks; both as in captum.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, LayerIntegratedGradients
from numpy.typing import NDArray
from torch import Tensor, nn

from genre_dist.compare.differences import FilmInfo
from genre_dist.models.classifier import GenreClassifier
from genre_dist.stream.sample import PADDING

STEPS = 32
"""Points of the integral between the baseline (only padding) and the text."""


class Attribution(NamedTuple):
    """The attribution of one genre's logit."""

    heat: NDArray[np.float32] | None  # [size, size] from 0 to 1, the poster's heat map; None without a poster
    words: NDArray[np.float32] | None  # [tokens] or [words], what each adds to the logit; None without a text
    unexplained: float
    """The part of the text's effect on the logit that the sum over the words misses."""

    def of_words(self, owners: NDArray[np.int64], words: int) -> Self:
        """The same with one value a word, the sum of its tokens' values; owners: [tokens] the number of their word."""
        if self.words is None or not words:
            return self
        values = np.bincount(owners, self.words[: len(owners)], words)
        return self._replace(words=values.astype(np.float32))


class Explained(NamedTuple):
    """A film with the attributions of some genres."""

    film: int
    info: FilmInfo | None
    true: list[str]
    words: list[str]
    picture: NDArray[np.uint8] | None  # [size, size, 3], the model's input
    genres: list[tuple[str, float, Attribution]]
    """Name, logit above the threshold, attribution."""


class Explainer:
    """Attributes a model's logits, film by film. The model stays in eval mode and unchanged."""

    def __init__(self, model: GenreClassifier, image_size: int, padding: int = PADDING) -> None:
        """`padding` is the token that stands for no text."""
        self.model, self.padding = model, padding
        device = next(model.parameters()).device
        self.layer = None
        if model.poster is not None:
            self.layer = last_feature_map(model.poster, torch.zeros(1, 3, image_size, image_size, device=device))

    def __call__(self, images: Tensor | None, tokens: Tensor | None, lengths: Tensor | None, genre: int) -> Attribution:
        """The attribution of a genre for one film, a batch of 1 as the model takes it."""
        with torch.no_grad():
            text = None if self.model.text is None else self.model.text(tokens, lengths)
            poster = None if self.model.poster is None else self.model.poster(images)
        with _gradients_enabled(self.model):
            heat = None if images is None or self.layer is None else self._heat(images, text, genre)
            words, unexplained = (None, 0.0) if tokens is None else self._words(tokens, lengths, poster, genre)
        return Attribution(heat, words, unexplained)

    def _heat(self, images: Tensor, text: Tensor | None, genre: int) -> NDArray[np.float32]:
        def forward(pixels: Tensor) -> Tensor:
            assert self.model.poster is not None
            return self._heads(text, self.model.poster(pixels))

        assert self.layer is not None
        pixels = images.clone().requires_grad_(True)  # a frozen encoder has no graph otherwise
        attributed = LayerGradCam(forward, self.layer).attribute(pixels, target=genre, relu_attributions=True)
        heat = F.interpolate(attributed.detach(), images.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
        return (heat / heat.max().clamp(min=1e-12)).cpu().numpy()

    def _words(
        self, tokens: Tensor, lengths: Tensor | None, poster: Tensor | None, genre: int
    ) -> tuple[NDArray[np.float32], float]:
        def forward(text: Tensor) -> Tensor:
            assert self.model.text is not None
            assert lengths is not None
            encoded = self.model.text(text, lengths.expand(len(text)))
            return self._heads(encoded, None if poster is None else poster.expand(len(text), -1))

        assert self.model.text is not None
        attributed, delta = LayerIntegratedGradients(forward, self.model.text.embedding).attribute(
            tokens,
            baselines=torch.full_like(tokens, self.padding),
            target=genre,
            n_steps=STEPS,
            return_convergence_delta=True,
        )
        return attributed.detach().sum(-1)[0].cpu().numpy(), float(delta.abs().max())

    def _heads(self, text: Tensor | None, poster: Tensor | None) -> Tensor:
        return self.model.heads(torch.cat([part for part in (text, poster) if part is not None], dim=1))


def last_feature_map(network: nn.Module, images: Tensor) -> nn.Module | None:
    """The module with the last feature map [B, C, h, w] before pooling, found by a forward pass on `images`.

    None for a network without feature maps, such as a vision transformer.
    """
    maps: list[nn.Module] = []

    def note(module: nn.Module, _: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1:
            maps.append(module)

    hooks = [module.register_forward_hook(note) for module in network.modules() if module is not network]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return maps[-1] if maps else None


@contextmanager
def _gradients_enabled(model: GenreClassifier) -> Iterator[None]:
    """Enable gradients in frozen encoders and in LSTMs: cuDNN's has none in eval mode, so cuDNN is off."""
    parts = [part for part in (model.text, model.poster) if part is not None]
    frozen = [part.frozen for part in parts]
    for part in parts:
        part.frozen = False
    try:
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for part, was in zip(parts, frozen, strict=True):
            part.frozen = was
        model.zero_grad(set_to_none=True)
