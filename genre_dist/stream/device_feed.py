"""Batches on their way to the device: pinned slots, copies, and what the model takes."""

import mmap
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from genre_dist.config import DataConfig
from genre_dist.stream import images
from genre_dist.stream.batch import Batch

Decoding = Literal["auto", "cpu", "gpu"]
TEXT_WIDTH = 64
"""On a GPU texts are padded to a multiple of this, so that memory for them comes in few sizes."""


class DeviceFeed:
    """How a stream's batches get ready for a CUDA device. Made by `device_feed`."""

    def __init__(self, device: torch.device, decodes: bool) -> None:
        self.device, self.decodes = device, decodes

    def pin(self, memory: mmap.mmap) -> Callable[[], None]:
        """Register the slots' memory with CUDA, so that copies from it run beside computing; returns what undoes it.

        If that fails (a limit on locked memory), copies go through pinned buffers of torch's instead, and one line
        says so.
        """
        view = np.frombuffer(memory, np.uint8)
        address = view.ctypes.data
        cuda = torch.cuda.cudart()
        code = int(cuda.cudaHostRegister(address, view.nbytes, 0))
        if code == 0:
            return lambda: _unpin(address)
        print(
            f"warning: the batches' memory could not be pinned (cudaHostRegister: error {code}; `ulimit -l`?); "
            "copies to the GPU take longer",
            file=sys.stderr,
            flush=True,
        )
        with suppress(RuntimeError):  # the next CUDA call raises the same error again: this one is made for it
            torch.zeros(1, device=self.device)
        return lambda: None

    def finish(self, batch: Batch) -> Batch:
        """Decode a batch's posters if it came with JPEGs."""
        if batch.jpeg_bytes is not None:
            with _copying(self.device):
                images.decode_images(batch, self.device)
        return batch


def _unpin(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


def device_feed(device: torch.device, wanted: Decoding) -> DeviceFeed | None:
    """What feeds a device, None for the CPU, which reads the slots as they are.

    Posters are decoded on the GPU if that is wanted; `auto` does so if a rank has fewer than two CPU cores: an H100 at
    40 % of its peak trains ResNet152 and the LSTM on about 5,300 films a second, which two cores decode (reckoned, not
    measured). Raises ValueError if `gpu` is wanted without a CUDA device; where a CUDA device cannot decode, one line
    says why and the CPU does it.
    """
    if device.type != "cuda":
        if wanted == "gpu":
            raise ValueError(f"data.decode=gpu needs a CUDA device, this run is on {device.type}; use auto or cpu")
        return None
    cores = len(os.sched_getaffinity(0)) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    decodes = wanted == "gpu" or (wanted == "auto" and cores < 2)
    if decodes and (reason := images.why_not_decoded_on(device)):
        print(f"posters are decoded on the CPU: {reason}", file=sys.stderr, flush=True)
        decodes = False
    return DeviceFeed(device, decodes)


def upload(batch: Batch, device: torch.device) -> list[Tensor | None]:
    """A batch's images, tokens, labels, weights and encodings on the device; on the CPU without a copy.

    On CUDA they are copied by a stream of their own, which the computing one waits for, the host does not;
    `batch.copied` says when the host's memory is free again.
    """
    pixels = batch.images if batch.pixels is None else batch.pixels
    parts = [pixels, batch.tokens, batch.labels, batch.weights, batch.encodings]
    if device.type != "cuda":
        return [None if part is None else torch.as_tensor(part) for part in parts]
    computing = torch.cuda.current_stream(device)
    with _copying(device):
        moved = [None if part is None else sent(torch.as_tensor(part), device) for part in parts]
        done = torch.cuda.current_stream(device).record_event()
    computing.wait_event(done)
    for tensor in moved:
        if tensor is not None:
            tensor.record_stream(computing)  # its memory was taken by the copying stream
    batch.copied = done
    return moved


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; the host does not wait until it is there."""
    if device.type != "cuda" or tensor.device == device or not tensor.numel():
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def _copying(device: torch.device) -> AbstractContextManager[Any]:
    """Surrounds copies to a device."""
    return torch.cuda.stream(_copy_stream(device)) if device.type == "cuda" else nullcontext()


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


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
        boxes = images.crop_boxes(ids, seed, epoch, data.crop_scale, data.crop_ratio, data.flip)
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
        batch = batch.blank()
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
