"""From a host batch to what the model takes, on the rank's device."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genre_dist.config import DataConfig
from genre_dist.stream import images
from genre_dist.stream.crops import crop_boxes
from genre_dist.stream.device import upload
from genre_dist.stream.reader import Batch


class Inputs(NamedTuple):
    """A micro-batch on the device; a part the model leaves out is None."""

    images: Tensor | None  # float32 [n, 3, size, size], normalised
    tokens: Tensor | None  # int64 [n, longest]
    lengths: Tensor | None  # int64 [n], on the host, where packing wants them
    labels: Tensor  # float32 [n, genres]
    weights: Tensor  # float32 [n]
    blank: bool  # no sample at all: one blank sample of weight 0
    encodings: Tensor | None = None  # float32 [n, E], in place of images and tokens

    @property
    def for_model(self) -> tuple[Tensor | None, ...]:
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
        return images.cropped(raw, torch.from_numpy(boxes).to(raw.device), data.image_size)

    return pixels


def whole_pixels(data: DataConfig) -> Pixels:
    """The whole poster."""
    return lambda raw, ids: images.whole(raw, data.image_size)


def to_device(batch: Batch, device: torch.device, pixels: Pixels) -> Inputs:
    """Move a batch to the device and make its pixels. An empty one becomes a single blank sample of weight 0.

    So every rank computes something in every micro-batch, and collectives inside the model never wait for a rank that
    has no sample left.
    """
    blank = len(batch.ids) == 0
    if blank:
        batch = _blank(batch)
    raw, tokens, labels, weights = upload(batch, device)
    assert labels is not None
    assert weights is not None
    return Inputs(
        images=None if raw is None else pixels(raw, batch.ids),
        tokens=None if tokens is None else tokens.long(),
        lengths=None if batch.lengths is None else torch.from_numpy(batch.lengths),
        labels=labels,
        weights=weights,
        blank=blank,
        encodings=None if batch.encodings is None else torch.from_numpy(batch.encodings).to(device),
    )


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
