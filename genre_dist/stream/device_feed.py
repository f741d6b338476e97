"""Batches to the device: pinned slots, asynchronous copies, and the model's inputs."""

import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping
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
from genre_dist.stream.batch import ALL, Batch

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
        for part in batch.of("jpeg_bytes"):
            with _copying(self.device):
                images.decode_images(batch, part, self.device)
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
        print(f"images are decoded on the CPU: {reason}", file=sys.stderr, flush=True)
        decodes = False
    return DeviceFeed(device, decodes)


def upload(arrays: Mapping[str, NDArray[Any] | Tensor], batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A batch's arrays on the device, by name; on the CPU without a copy.

    On CUDA a separate stream copies them; the computing stream waits for it, the host does not. The event
    `batch.copied` marks when the host's memory may be reused.
    """
    if device.type != "cuda":
        return {name: torch.as_tensor(array) for name, array in arrays.items()}
    computing = torch.cuda.current_stream(device)
    with _copying(device):
        moved = {name: sent(torch.as_tensor(array), device) for name, array in arrays.items()}
        done = torch.cuda.current_stream(device).record_event()
    computing.wait_event(done)
    for tensor in moved.values():
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


class FieldInput(NamedTuple):
    """A field's values for one part of the model, of m samples of a micro-batch of n that have it."""

    values: Tensor | None
    """Images float32 [m, 3, size, size], normalised; tokens int64 [m, longest]; numbers float32 [m, numbers]. None
    where the part's encodings were computed before."""
    lengths: NDArray[np.int64] | None = None
    """[m] tokens of each text: an array, since packing needs it on the host."""
    at: Tensor | None = None
    """int64 [n], each sample's position among the values (0 without any); None: all samples have the field."""
    has: Tensor | None = None
    """bool [n], whether a sample has the field; None where the model cannot take samples without it."""


class Inputs(NamedTuple):
    """A micro-batch on the device."""

    fields: dict[str, FieldInput]
    """By part of the model."""
    labels: Tensor  # float32 [n, labels]
    weights: Tensor  # float32 [n]
    absent: tuple[str, ...] = ()
    """Parts without any sample of their field: a blank one stands in, which must not count in statistics."""
    encodings: Tensor | None = None  # float32 [n, E] of all parts together, instead of their values
    odd: bool = False  # not the size that the model is compiled for

    @property
    def for_model(self) -> tuple[Any, ...]:
        """The arguments of the model's forward."""
        return (self.fields,) if self.encodings is None else (self.fields, self.encodings)

    @property
    def samples(self) -> int:
        return len(self.labels)


Pixels = Callable[[Tensor, NDArray[np.int64]], Tensor]
Has = dict[str, NDArray[np.bool_]]
"""Whether each sample of a batch has a field, bool [n], by part of the model."""
Hidden = Callable[[NDArray[np.int64], Has], Has]
"""(ids [n], what the samples have) -> what of it the model sees."""


def dropping(share: float, seed: int, epoch: int) -> Hidden | None:
    """Hide each field of a sample with probability `share`, but never all that it has; None for a share of 0.

    The draw is a pure function of (seed, epoch, sample id, field), so it is the same for any number of ranks.
    """
    if share == 0:
        return None

    def hidden(ids: NDArray[np.int64], has: Has) -> Has:
        drawn = [images.dropped(ids, seed, epoch, share, number) for number in range(len(has))]
        shown = {part: had & ~hides for (part, had), hides in zip(has.items(), drawn, strict=True)}
        nothing = ~np.logical_or.reduce(list(shown.values()))
        return {part: shown[part] | (had & nothing) for part, had in has.items()}

    return hidden


def hiding(part: str) -> Hidden:
    """Hide a part's field of every sample."""
    return lambda ids, has: has | {part: np.zeros_like(has[part])}


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


def to_device(
    batch: Batch, device: torch.device, pixels: Pixels, size: Size | None = None, hidden: Hidden | None = None
) -> Inputs:
    """Move a batch to the device and make its pixels. An empty batch becomes a single blank sample of weight 0.

    So every rank computes every micro-batch, and collectives inside the model never wait for a rank without samples.
    Of a field that samples may lack, only the values that are there become inputs; `hidden` hides some of them. With
    the `size` of a compiled model the batch is filled up to it, or marked as odd.
    """
    blank = len(batch.ids) == 0
    if blank:
        batch = batch.blank()
    has = batch.of("has")
    chosen = {part: _Chosen(own) for part, own in (hidden(batch.ids, has) if has and hidden else has).items()}
    arrays: dict[str, Any] = {"labels": batch.labels, "weights": batch.weights} | batch.arrays | batch.pixels
    for part, choice in chosen.items():
        arrays |= {f"{part}.{name}": array for name, array in choice.to_send.items()}
    moved = upload({name: array for name, array in arrays.items() if not name.endswith(".lengths")}, batch, device)
    parts = {name.split(".")[0]: None for name in moved if "." in name and not name.startswith(f"{ALL}.")}
    inputs = Inputs(
        fields={part: _field_input(part, batch, moved, chosen.get(part), pixels) for part in parts},
        labels=moved["labels"],
        weights=moved["weights"],
        absent=tuple(parts) if blank else tuple(part for part, choice in chosen.items() if not choice.has.any()),
        encodings=moved.get(f"{ALL}.encodings"),
    )
    if size is None or all(size.samples == length for length in _lengths(inputs)):
        return inputs
    return filled(inputs, size.samples) if size.fill and not blank else inputs._replace(odd=True)


class _Chosen:
    """The samples of a batch that have a field. has: bool [n]."""

    def __init__(self, has: NDArray[np.bool_]) -> None:
        self.has = has
        self.rows = np.flatnonzero(has) if has.any() else np.zeros(1, np.int64)  # a blank one where none has it
        self.to_send: dict[str, NDArray[Any]] = {"has": has}
        if not has.all():
            self.to_send |= {"rows": self.rows, "at": np.maximum(np.cumsum(has) - 1, 0)}


def _field_input(
    part: str, batch: Batch, moved: Mapping[str, Tensor], chosen: _Chosen | None, pixels: Pixels
) -> FieldInput:
    """A part's values, of the samples that have its field."""
    has, at = moved.get(f"{part}.has"), moved.get(f"{part}.at")
    ids, lengths, rows = batch.ids, batch.arrays.get(f"{part}.lengths"), moved.get(f"{part}.rows")
    kind = next((kind for kind in ("images", "tokens", "numbers") if f"{part}.{kind}" in moved), None)
    if kind is None:
        return FieldInput(None, has=has)
    values = moved[f"{part}.{kind}"]
    if rows is not None and chosen is not None:
        values, ids = values.index_select(0, rows), ids[chosen.rows]
        lengths = None if lengths is None else lengths[chosen.rows]
    if kind == "images":
        values = pixels(values, ids)
    elif kind == "tokens":
        if values.is_cuda:
            values = F.pad(values, (0, -values.shape[1] % TEXT_WIDTH))
        values = values.long()
    return FieldInput(values, lengths, at, has)


def _lengths(inputs: Inputs) -> Iterator[int]:
    """The numbers of samples of all tensors."""
    yield inputs.samples
    for field in inputs.fields.values():
        if field.values is not None:
            yield len(field.values)


def filled(inputs: Inputs, samples: int) -> Inputs:
    """Inputs with blank samples of weight 0 appended."""

    def fill(value: Any) -> Any:
        if isinstance(value, Tensor):
            return F.pad(value, (0, 0) * (value.ndim - 1) + (0, samples - len(value)))
        if isinstance(value, np.ndarray):
            return np.concatenate([value, np.zeros(samples - len(value), value.dtype)])
        return value

    return inputs._replace(
        fields={part: FieldInput(*map(fill, field)) for part, field in inputs.fields.items()},
        labels=fill(inputs.labels),
        weights=fill(inputs.weights),
        encodings=fill(inputs.encodings),
    )
