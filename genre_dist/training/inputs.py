"""From a host batch to what the model takes, on the rank's device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from genre_dist.config import DataConfig
from genre_dist.stream import images
from genre_dist.stream.batch import Batch
from genre_dist.stream.crops import crop_boxes
from genre_dist.stream.device import sent, upload

TEXT_WIDTH = 64
"""On a GPU texts are padded to a multiple of this, so that memory for them comes in few sizes."""


class Size(NamedTuple):
    """The one size of batch that a compiled model takes; each other one would be compiled anew, for minutes."""

    samples: int
    fill: bool
    """Smaller batches are filled up with blank samples of weight 0; else they are computed without the compiler, where
    a BatchNorm would see what fills them."""


class Inputs(NamedTuple):
    """A micro-batch on the device; a part the model leaves out is None."""

    images: Tensor | None  # float32 [n, 3, size, size], normalised
    tokens: Tensor | None  # int64 [n, longest]
    lengths: NDArray[np.int64] | None  # [n], an array, so that it stays on the host, where packing wants it
    labels: Tensor  # float32 [n, genres]
    weights: Tensor  # float32 [n]
    blank: bool  # no sample at all: one blank sample of weight 0
    encodings: Tensor | None = None  # float32 [n, E], in place of images and tokens
    odd: bool = False  # of another size than the model is compiled for

    @property
    def for_model(self) -> tuple[Tensor | NDArray[np.int64] | None, ...]:
        """What the model's forward takes."""
        media = (self.images, self.tokens, self.lengths)
        return media if self.encodings is None else (*media, self.encodings)


Pixels = Callable[[Tensor, NDArray[np.int64]], Tensor]


def training_pixels(data: DataConfig, seed: int, epoch: int) -> Pixels:
    """Crops (and mirrors) drawn by (seed, epoch, film), or the whole poster if the configuration says so."""
    if data.shows_whole_posters:
        return whole_pixels(data)

    def pixels(raw: Tensor, ids: NDArray[np.int64]) -> Tensor:
        boxes = crop_boxes(ids, seed, epoch, data.crop_scale, data.crop_ratio, data.flip)
        return images.cropped(raw, sent(torch.from_numpy(boxes), raw.device), data.image_size)

    return pixels


def whole_pixels(data: DataConfig) -> Pixels:
    """The whole poster."""
    return lambda raw, ids: images.whole(raw, data.image_size)


def to_device(batch: Batch, device: torch.device, pixels: Pixels, size: Size | None = None) -> Inputs:
    """Move a batch to the device and make its pixels. An empty one becomes a single blank sample of weight 0.

    So every rank computes something in every micro-batch, and collectives inside the model never wait for a rank that
    has no sample left. With a `size` of a compiled model the batch is filled up to it, or said to be odd.
    """
    blank = len(batch.ids) == 0
    if blank:
        batch = _blank(batch)
    raw, tokens, labels, weights, encodings = upload(batch, device)
    assert labels is not None
    assert weights is not None
    if tokens is not None and device.type == "cuda":
        tokens = F.pad(tokens, (0, -tokens.shape[1] % TEXT_WIDTH))
    inputs = Inputs(
        images=None if raw is None else pixels(raw, batch.ids),
        tokens=None if tokens is None else tokens.long(),
        lengths=batch.lengths,
        labels=labels,
        weights=weights,
        blank=blank,
        encodings=encodings,
    )
    if size is None or size.samples == len(batch.ids):
        return inputs
    return filled(inputs, size.samples) if size.fill and not blank else inputs._replace(odd=True)


def filled(inputs: Inputs, samples: int) -> Inputs:
    """Inputs with blank samples of weight 0 behind their own."""
    more, new = samples - len(inputs.labels), dict[str, Any]()
    for name, value in inputs._asdict().items():
        if isinstance(value, Tensor):
            new[name] = F.pad(value, (0, 0) * (value.ndim - 1) + (0, more))
        elif isinstance(value, np.ndarray):
            new[name] = np.concatenate([value, np.zeros(more, value.dtype)])
    return inputs._replace(**new)


def _blank(batch: Batch) -> Batch:
    images_shape = None if batch.images is None else batch.images.shape[1:]
    return Batch(
        ids=np.zeros(1, np.int64),
        labels=np.zeros((1, batch.labels.shape[1]), np.float32),
        weights=np.zeros(1, np.float32),
        images=None if images_shape is None else np.full((1, *images_shape), 128, np.uint8),
        tokens=None if batch.tokens is None else np.zeros((1, 1), np.int32),
        lengths=None if batch.lengths is None else np.zeros(1, np.int64),
        encodings=None if batch.encodings is None else np.zeros((1, batch.encodings.shape[1]), np.float32),
    )
