"""Attributions of a label's logit: Grad-CAM on the images, integrated gradients on the words.

Selvaraju et al. 2017, Grad-CAM; Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks; both as in captum.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, LayerIntegratedGradients
from numpy.typing import NDArray
from torch import Tensor, nn

from genre_dist.compare.differences import FilmInfo
from genre_dist.models.classifier import GenreClassifier
from genre_dist.stream.device_feed import FieldInput
from genre_dist.stream.sample import PADDING

STEPS = 32
"""Points of the integral between the baseline (only padding) and the text."""


class Attribution(NamedTuple):
    """The attribution of one label's logit, to each image and each text that the sample has."""

    heats: dict[str, NDArray[np.float32]]  # by encoder: [size, size] from 0 to 1, the image's heat map
    words: dict[str, NDArray[np.float32]]  # by encoder: [tokens], what each adds to the logit
    unexplained: dict[str, float]
    """The part of each text's effect on the logit that the sum over its words misses, by encoder."""


class Explained(NamedTuple):
    """A sample with the attributions of some labels."""

    film: int
    info: FilmInfo | None
    true: list[str]
    words: dict[str, list[str]]
    """The words of each text, by field."""
    pictures: dict[str, NDArray[np.uint8]]  # by field: [size, size, 3], the model's input
    genres: list[tuple[str, float, Attribution]]
    """Name, logit above the threshold, attribution by field and with one value a word."""


class Explainer:
    """Attributes a model's logits, sample by sample. The model stays in eval mode and unchanged."""

    def __init__(self, model: GenreClassifier, image_size: int, padding: int = PADDING) -> None:
        """`padding` is the token that stands for no text."""
        self.model, self.padding = model, padding
        device = next(model.parameters()).device
        zeros = torch.zeros(1, 3, image_size, image_size, device=device)
        self.layers = {part: last_feature_map(encoder, zeros) for part, encoder in model.image_encoders.items()}

    def __call__(self, fields: Mapping[str, FieldInput], label: int) -> Attribution:
        """The attribution of a label for one sample, a batch of 1."""
        attribution = Attribution({}, {}, {})
        with torch.no_grad():
            encodings = self.model.encode(fields)  # [1, E]
        with _gradients_enabled(self.model):
            for part, layer in self.layers.items():
                if layer is not None and _is_there(fields[part]):
                    attribution.heats[part] = self._heat(part, layer, fields, encodings, label)
            for part in self.model.text_encoders:
                if _is_there(fields[part]):
                    attribution.words[part], attribution.unexplained[part] = self._words(part, fields, encodings, label)
        return attribution

    def _heat(
        self, part: str, layer: nn.Module, fields: Mapping[str, FieldInput], encodings: Tensor, label: int
    ) -> NDArray[np.float32]:
        def forward(pixels: Tensor) -> Tensor:
            return self._logits(part, self.model.image_encoders[part](pixels), fields, encodings)

        images = fields[part].values
        assert images is not None
        pixels = images.clone().requires_grad_(True)  # a frozen encoder has no graph otherwise
        attributed = LayerGradCam(forward, layer).attribute(pixels, target=label, relu_attributions=True)
        heat = F.interpolate(attributed.detach(), images.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
        return (heat / heat.max().clamp(min=1e-12)).cpu().numpy()

    def _words(
        self, part: str, fields: Mapping[str, FieldInput], encodings: Tensor, label: int
    ) -> tuple[NDArray[np.float32], float]:
        encoder, tokens = self.model.text_encoders[part], fields[part].values
        lengths = torch.as_tensor(fields[part].lengths)
        assert tokens is not None

        def forward(text: Tensor) -> Tensor:
            return self._logits(part, encoder(text, lengths.expand(len(text))), fields, encodings)

        attributed, delta = LayerIntegratedGradients(forward, encoder.embedding).attribute(
            tokens,
            baselines=torch.full_like(tokens, self.padding),
            target=label,
            n_steps=STEPS,
            return_convergence_delta=True,
        )
        return attributed.detach().sum(-1)[0].cpu().numpy(), float(delta.abs().max())

    def _logits(self, part: str, encoding: Tensor, fields: Mapping[str, FieldInput], encodings: Tensor) -> Tensor:
        """Logits with another encoding [B, E] of one part, beside those of the others, [1, E of all]."""
        sizes = [encoder.encoding_size for encoder in self.model.encoders.values()]
        beside = dict(zip(self.model.parts, encodings.expand(len(encoding), -1).split(sizes, dim=1), strict=True))
        has = {name: None if field.has is None else field.has.expand(len(encoding)) for name, field in fields.items()}
        return self.model.logits(torch.cat(list((beside | {part: encoding}).values()), dim=1), has)


def _is_there(field: FieldInput) -> bool:
    """Whether the only sample of a batch has a field."""
    return field.has is None or bool(field.has.all())


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
    parts = list(model.encoders.values())
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
