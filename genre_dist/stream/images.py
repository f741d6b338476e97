"""Posters on the device: crop, resize and normalise uint8 batches where the model runs."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB; the weights of every torchvision classifier expect them
STD = (0.229, 0.224, 0.225)


def normalised(images: Tensor) -> Tensor:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W] with ImageNet's mean and deviation, channels-last in memory."""
    mean, std = _mean_and_std(images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


@cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of values from 0 to 255, float32 [3] each; kept, as a copy to the device would wait for it."""
    with torch.inference_mode(False):  # whoever asks first
        return torch.tensor(MEAN, device=device) * 255, torch.tensor(STD, device=device) * 255


def whole(images: Tensor, size: int) -> Tensor:
    """The whole posters for evaluation: uint8 [n, H, W, 3] -> float32 [n, 3, size, size]."""
    pixels = normalised(images)
    if pixels.shape[-2:] == (size, size):
        return pixels
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.contiguous(memory_format=torch.channels_last)


def cropped(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crops for training: uint8 [n, H, W, 3] and boxes [n, 4] of `crop_boxes` -> float32 [n, 3, size, size].

    Bilinear sampling skips pixels when it shrinks by more than two, so the picture is first averaged down by the
    smallest whole number that leaves at most that; it follows from the sizes alone, so a film's pixels do not depend on
    its batch.
    """
    pixels = normalised(images)
    shrink = math.ceil(pixels.shape[-1] / (2 * size))
    if shrink > 1:
        pixels = F.avg_pool2d(pixels, shrink)
    left, top, right, bottom = boxes.to(pixels).unbind(1)  # [n] each
    # affine_grid's coordinates run from -1 to 1 over the picture
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
