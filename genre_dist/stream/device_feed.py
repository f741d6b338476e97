"""Batches to the device: pinned slots, asynchronous copies, and the model's inputs."""

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
"""On a GPU texts are padded to a multiple of this, so that the allocator sees few sizes."""


class DeviceFeed:
    """Prepares a stream's batches for a CUDA device. `device_feed` makes it."""

    def __init__(self, device: torch.device, decodes: bool) -> None:
        self.device, self.decodes = device, decodes

    def pin(self, memory: mmap.mmap) -> Callable[[], None]:
        """Pin the slots' memory, so that copies from it overlap with computation; returns the function that unpins it.

        If that fails (a limit on locked memory), copies use torch's pinned buffers, and one line says so.
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
        with suppress(RuntimeError):  # the next CUDA call raises the error again; this call absorbs it
            torch.zeros(1, device=self.device)
        return lambda: None

    def finish(self, batch: Batch) -> Batch:
        """Decode a batch's images if it carries JPEGs."""
        if batch.jpeg_bytes is not None:
            with _copying(self.device):
                images.decode_images(batch, self.device)
        return batch


def _unpin(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


def device_feed(device: torch.device, wanted: Decoding) -> DeviceFeed | None:
    """The feed of a device; None for the CPU, which reads the slots directly.

    `gpu` decodes images on the GPU; `auto` does so if a rank has fewer than two CPU cores: an H100 at 40 % of its peak
    trains ResNet152 and the LSTM on about 5,300 samples a second, which two cores decode (estimated, not measured).
    Raises ValueError for `gpu` without a CUDA device; if a CUDA device cannot decode, one line says why and the CPU
    decodes.
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

    On CUDA a separate stream copies them; the computing stream waits for it, the host does not. The event
    `batch.copied` marks when the host's memory may be reused.
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
            tensor.record_stream(computing)  # the copying stream allocated its memory
    batch.copied = done
    return moved


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device; the host does not wait for the copy."""
    if device.type != "cuda" or tensor.device == device or not tensor.numel():
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def _copying(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which copies to a device run on their own stream."""
    return torch.cuda.stream(_copy_stream(device)) if device.type == "cuda" else nullcontext()


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Size(NamedTuple):
    """The batch size of a compiled model; torch would recompile for minutes at any other size."""

    samples: int
    fill: bool
    """Blank samples of weight 0 fill smaller batches up. If false (a BatchNorm would count the blank samples), smaller
    batches run uncompiled."""


class Inputs(NamedTuple):
    """A micro-batch on the device; inputs that the model does not use are None."""

    images: Tensor | None  # float32 [n, 3, size, size], normalised
    tokens: Tensor | None  # int64 [n, longest]
    lengths: NDArray[np.int64] | None  # [n], an array, since packing needs it on the host
    labels: Tensor  # float32 [n, genres]
    weights: Tensor  # float32 [n]
    blank: bool  # the batch is empty: one blank sample of weight 0 stands in
    encodings: Tensor | None = None  # float32 [n, E], instead of images and tokens
    odd: bool = False  # not the size that the model is compiled for

    @property
    def for_model(self) -> tuple[Tensor | NDArray[np.int64] | None, ...]:
        """The arguments of the model's forward."""
        media = (self.images, self.tokens, self.lengths)
        return media if self.encodings is None else (*media, self.encodings)


Pixels = Callable[[Tensor, NDArray[np.int64]], Tensor]


def training_pixels(data: DataConfig, seed: int, epoch: int) -> Pixels:
    """Random crops (and flips) drawn by (seed, epoch, sample id), or the whole image if the configuration says so."""
    if data.shows_whole_posters:
        return whole_pixels(data)

    def pixels(raw: Tensor, ids: NDArray[np.int64]) -> Tensor:
        boxes = images.crop_boxes(ids, seed, epoch, data.crop_scale, data.crop_ratio, data.flip)
        return images.cropped(raw, sent(torch.from_numpy(boxes), raw.device), data.image_size)

    return pixels


def whole_pixels(data: DataConfig) -> Pixels:
    """Pixels of the whole image."""
    return lambda raw, ids: images.whole(raw, data.image_size)


def to_device(batch: Batch, device: torch.device, pixels: Pixels, size: Size | None = None) -> Inputs:
    """Move a batch to the device and make its pixels. An empty batch becomes a single blank sample of weight 0.

    So every rank computes every micro-batch, and collectives inside the model never wait for a rank without samples.
    With the `size` of a compiled model the batch is filled up to it, or marked as odd.
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
    """Inputs with blank samples of weight 0 appended."""
    more, new = samples - len(inputs.labels), dict[str, Any]()
    for name, value in inputs._asdict().items():
        if isinstance(value, Tensor):
            new[name] = F.pad(value, (0, 0) * (value.ndim - 1) + (0, more))
        elif isinstance(value, np.ndarray):
            new[name] = np.concatenate([value, np.zeros(more, value.dtype)])
    return inputs._replace(**new)
