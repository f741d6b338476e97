"""Image transforms on the device: JPEG decoding, random crops, resizing, normalisation."""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from genre_dist.printable import printable
from genre_dist.stream.batch import BLANK, Batch
from genre_dist.stream.decode import decode_jpeg
from genre_dist.stream.order import uniforms

_CROP, _DROP = 4, 7  # the purpose of a draw; order.py has the others
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB; the weights of every torchvision classifier expect them
STD = (0.229, 0.224, 0.225)


def crop_boxes(
    ids: NDArray[np.int64],
    seed: int,
    epoch: int,
    scale: tuple[float, float] = (0.6, 1.0),
    ratio: tuple[float, float] = (0.8, 1.25),
    flip: bool = False,
) -> NDArray[np.float32]:
    """Random resized crops, the same for any number of ranks: float32 [n, 4] of (left, top, right, bottom), as shares.

    Area uniform in `scale`, width over height log-uniform in `ratio`, position uniform (Szegedy et al. 2014,
    https://arxiv.org/abs/1409.4842); a side longer than the image is clipped to it. In a mirrored crop left is
    greater than right.
    """
    draws = uniforms(seed, epoch, _CROP, np.asarray(ids)[:, None], np.arange(5)[None, :])  # [n, 5]
    area = scale[0] + draws[:, 0] * (scale[1] - scale[0])
    shape = np.exp(np.log(ratio[0]) + draws[:, 1] * (np.log(ratio[1]) - np.log(ratio[0])))
    width, height = np.minimum(1, np.sqrt(area * shape)), np.minimum(1, np.sqrt(area / shape))
    left, top = draws[:, 2] * (1 - width), draws[:, 3] * (1 - height)
    boxes = np.stack([left, top, left + width, top + height], axis=1)
    if flip:
        mirrored = draws[:, 4] < 0.5
        boxes[mirrored] = boxes[mirrored][:, [2, 1, 0, 3]]
    return boxes.astype(np.float32)


def dropped(ids: NDArray[np.int64], seed: int, epoch: int, share: float, field: int) -> NDArray[np.bool_]:
    """Which samples hide a field (given by its number) in an epoch, drawn with probability `share`: bool [n]."""
    return uniforms(seed, epoch, _DROP, field, np.asarray(ids)) < share


def normalised(images: Tensor) -> Tensor:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W] with ImageNet's mean and deviation, channels-last in memory."""
    mean, std = _mean_and_std(images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


@cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation of values from 0 to 255, float32 [3]; cached, as a copy to the device blocks."""
    with torch.inference_mode(False):  # the first caller may be in inference mode
        return torch.tensor(MEAN, device=device) * 255, torch.tensor(STD, device=device) * 255


def whole(images: Tensor, size: int) -> Tensor:
    """Whole images for evaluation: uint8 [n, H, W, 3] -> float32 [n, 3, size, size]."""
    pixels = normalised(images)
    if pixels.shape[-2:] == (size, size):
        return pixels
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.contiguous(memory_format=torch.channels_last)


def cropped(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crops for training: uint8 [n, H, W, 3] and boxes [n, 4] of `crop_boxes` -> float32 [n, 3, size, size].

    Bilinear sampling skips pixels when it shrinks by more than two, so average pooling by the smallest sufficient
    integer comes first; that integer depends on the sizes alone, so a sample's pixels do not depend on its batch.
    """
    pixels = normalised(images)
    shrink = math.ceil(pixels.shape[-1] / (2 * size))
    if shrink > 1:
        pixels = F.avg_pool2d(pixels, shrink)
    left, top, right, bottom = boxes.to(pixels).unbind(1)  # [n] each
    # affine_grid's coordinates run from -1 to 1 over the image
    zero = torch.zeros_like(left)
    theta = torch.stack(
        [
            torch.stack([right - left, zero, left + right - 1], 1),
            torch.stack([zero, bottom - top, top + bottom - 1], 1),
        ],
        1,
    )  # [n, 2, 3]
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    sampled = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.contiguous(memory_format=torch.channels_last)


def why_not_decoded_on(device: torch.device) -> str | None:
    """The reason why a device cannot decode a JPEG, found by a trial; None if it can."""
    try:
        import simplejpeg
    except ImportError:
        return "simplejpeg, which looks at JPEGs before the GPU does, is not installed"
    jpeg = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    try:
        _decode([torch.frombuffer(jpeg, dtype=torch.uint8)], device)
    except ModuleNotFoundError:
        return "torchcodec, which decodes JPEGs on a GPU, is not installed (pip install 'torchcodec>=0.17')"
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchcodec cannot decode on {device} ({str(error).splitlines()[0]})"
    return None


def _decode(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
    """JPEGs, uint8 [bytes] each, on the host -> uint8 [3, H, W] each, on the device, in its current stream."""
    from torchcodec.decoders import decode_jpeg as decode_jpegs

    decoded = decode_jpegs(jpegs, mode="RGB", device=device)
    assert isinstance(decoded, list)  # a list of JPEGs gives a list
    return decoded


def decode_images(batch: Batch, part: str, device: torch.device) -> None:
    """Decode the JPEGs of a part's array into pixels on the device, uint8 [n, size, size, 3].

    Readers have checked both ends and the size of every JPEG. If the device still finds one damaged, the CPU decodes
    the batch to find out which: that sample becomes blank, has the weight 0 and a line in `Batch.faults`.
    """
    name = f"{part}.images"
    stored, sizes = batch.arrays[name], batch.arrays.pop(f"{part}.jpeg_bytes").tolist()
    n, side = len(batch.ids), stored.shape[1]
    rows = stored.reshape(n, 3 * side * side)
    jpegs = [torch.from_numpy(row[:size]) for row, size in zip(rows, sizes, strict=True) if size]
    blank = torch.full((3, side, side), BLANK, dtype=torch.uint8, device=device)
    try:
        decoded = iter(_decode(jpegs, device) if jpegs else [])
        pixels = [next(decoded) if size else blank for size in sizes]
        batch.pixels[name] = torch.stack(pixels or [blank])[:n].permute(0, 2, 3, 1)
    except RuntimeError:
        batch.arrays[name] = np.full_like(stored, BLANK)
        for number, size in enumerate(sizes):
            _decode_on_host(batch, number, rows[number, :size], batch.arrays[name][number])


def _decode_on_host(batch: Batch, number: int, jpeg: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> None:
    """Decode a JPEG on the CPU; a damaged one makes its sample blank, with a fault."""
    try:
        if len(jpeg):
            decode_jpeg(jpeg.data, pixels)
    except ValueError as error:
        batch.clear(number)
        own = f"sample {printable(batch.samples[number])}" if batch.samples else f"film {batch.ids[number]}"
        batch.faults.append(f"{own}: {error}; `genre-dist inspect --verify` names its shard")
