"""What a CUDA device adds to reading: pinned slots, and posters decoded where the model runs."""

import mmap
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from genre_dist.stream import decode
from genre_dist.stream.batch import Batch
from genre_dist.stream.sample import PADDING

BLANK = 128
Decoding = Literal["auto", "cpu", "gpu"]


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
        with suppress(RuntimeError):  # CUDA tells the error once more to whoever calls next: that shall be nobody else
            torch.zeros(1, device=self.device)
        return lambda: None

    def finish(self, batch: Batch) -> Batch:
        """Decode a batch's posters if it came with JPEGs."""
        if batch.jpeg_bytes is not None:
            with _copying(self.device):
                decode_posters(batch, self.device)
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
    if decodes and (reason := _cannot_decode(device)):
        print(f"posters are decoded on the CPU: {reason}", file=sys.stderr, flush=True)
        decodes = False
    return DeviceFeed(device, decodes)


def _cannot_decode(device: torch.device) -> str | None:
    """Why a device decodes no JPEG, found by decoding one."""
    try:
        import simplejpeg
    except ImportError:
        return "simplejpeg, which looks at JPEGs before the GPU does, is not installed"
    jpeg = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    try:
        _decode([torch.frombuffer(jpeg, dtype=torch.uint8)], device)
    except (ImportError, RuntimeError) as error:
        return f"torchvision cannot decode on {device} ({str(error).splitlines()[0]})"
    return None


def _decode(jpegs: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """JPEGs, uint8 [bytes] each, on the host -> uint8 [3, H, W] each, on the device.

    torchvision decodes on a stream of its own into memory of the current one, and orders only what comes after it: what
    the current stream has still to do in memory that was given back must be done before. That was the batch before.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will move to another package; that is no concern of a user's
        decoded: list[torch.Tensor] = decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device)
    return decoded


def decode_posters(batch: Batch, device: torch.device) -> None:
    """Make pixels on the device, uint8 [n, size, size, 3], of a batch whose posters are JPEGs.

    Readers have seen that every JPEG is whole at both ends and of the right size. If the device finds one damaged
    nevertheless, the batch is decoded on the CPU, which tells which: it becomes blank, weighs nothing and gets a line.
    """
    assert batch.images is not None
    assert batch.jpeg_bytes is not None
    n, side = len(batch.ids), batch.images.shape[1]
    rows, sizes = batch.images.reshape(n, 3 * side * side), batch.jpeg_bytes.tolist()
    whole = [number for number, size in enumerate(sizes) if size]
    pixels = torch.full((n, 3, side, side), BLANK, dtype=torch.uint8, device=device)
    try:
        if whole:
            jpegs = [torch.from_numpy(rows[number, : sizes[number]]) for number in whole]
            pixels[sent(torch.tensor(whole), device)] = torch.stack(_decode(jpegs, device))
        batch.pixels = pixels.permute(0, 2, 3, 1)
    except RuntimeError:
        batch.images = _decoded_on_host(batch, rows)
    batch.jpeg_bytes = None


def _decoded_on_host(batch: Batch, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same on the CPU, one by one, with a fault for each that is damaged."""
    assert batch.images is not None
    assert batch.jpeg_bytes is not None
    pixels = np.full_like(batch.images, BLANK)
    for number in np.flatnonzero(batch.jpeg_bytes).tolist():
        try:
            decode.decode_jpeg(rows[number, : int(batch.jpeg_bytes[number])].data, pixels[number])
        except ValueError as error:
            pixels[number], batch.weights[number], batch.labels[number] = BLANK, 0, 0
            if batch.tokens is not None and batch.lengths is not None:
                batch.tokens[number], batch.lengths[number] = PADDING, 0
            batch.faults.append(f"film {batch.ids[number]}: {error}; `genre-dist inspect --verify` names its shard")
    return pixels


def upload(batch: Batch, device: torch.device) -> list[torch.Tensor | None]:
    """A batch's images, tokens, labels, weights and encodings on the device; on the CPU without a copy.

    On CUDA they are copied by a stream of their own, which the computing one waits for, the host does not;
    `batch.copied` says when the host's memory is free again.
    """
    images = batch.images if batch.pixels is None else batch.pixels
    parts = [images, batch.tokens, batch.labels, batch.weights, batch.encodings]
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


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
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
