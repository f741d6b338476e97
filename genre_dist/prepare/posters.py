"""Posters of any kind -> RGB pixels of one shape -> JPEG."""

import io
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

Fit = Literal["squash", "crop", "pad"]

MAX_PIXELS = 64_000_000
"""A poster with more pixels is refused before it is decoded (a small file can name any size)."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What posters may be; Pillow knows formats that start other programs (EPS runs Ghostscript)."""
HALVE_FROM = 6
"""Posters this many times larger than the shards' are decoded at half their size, which libjpeg does in the DCT.

Area averaging over 3 pixels or more hides the difference: on 120 real posters of 320 x 474 made 53 x 53, 42.8 dB on
the mean and 35 dB at worst against full decoding, where coding the result at quality 90 costs 31 dB. From twice the
size on, as is often done, it is 31 dB on the mean and 22 dB at worst, more than the coding costs: visible, so not done.
(Measured with simplejpeg 1.9 on 2026-11-23; benchmarks/pack.py repeats it with generated posters.)
"""
_EXIF_ORIENTATION = 0x0112

Image.MAX_IMAGE_PIXELS = None  # the limit above is checked instead, from the header


def square_jpeg(data: bytes, size: int, fit: Fit, quality: int) -> bytes:
    """An image file -> a JPEG of size x size pixels. One that already is such a JPEG passes through untouched.

    Raises ValueError saying what is wrong with the file.
    """
    pixels, plain = load_rgb(data, least=HALVE_FROM * size)
    if plain and pixels.shape[:2] == (size, size):
        return data
    return simplejpeg.encode_jpeg(square(pixels, size, fit), quality=quality, colorspace="RGB", colorsubsampling="420")


def load_rgb(data: bytes, least: int | None = None) -> tuple[NDArray[np.uint8], bool]:
    """An image file -> uint8 [height, width, 3] RGB, upright, and whether it is a plain RGB JPEG already.

    Greyscale, CMYK, palettes and transparency become RGB; EXIF rotation is applied. A plain JPEG whose sides are both
    `least` pixels or more is decoded at half its size, if that and its middle fall on whole pixels. Raises ValueError
    for what is no whole image, or larger than MAX_PIXELS.
    """
    try:
        shape = _plain_shape(data)
        return (_general(data), False) if shape is None else (_decode(data, *shape, least), True)
    except Exception as error:  # for damaged files Pillow raises errors of many kinds
        raise ValueError(f"not a whole image: {error}") from None


def _plain_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that needs nothing but decoding; None for all else, which Pillow looks into.

    (Pillow takes 60 us to tell the same, a fortieth of packing a poster.)
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixels(height, width)
    plain = colours in ("YCbCr", "RGB")
    if plain and (b"Exif\0" in data or b"tiff:Orientation" in data):
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            plain = opened.getexif().get(_EXIF_ORIENTATION, 1) == 1
    return (height, width) if plain else None


def _check_pixels(height: int, width: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")


def _decode(data: bytes, height: int, width: int, least: int | None) -> NDArray[np.uint8]:
    """A plain JPEG's pixels, at half the size if both sides are large enough."""
    if least is None or min(height, width) < least or height % 4 or width % 4:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    # libjpeg takes the smallest of its sizes that has these sides
    half = {"min_height": height // 2, "min_width": width // 2, "min_factor": 2}
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB", **half))


def _general(data: bytes) -> NDArray[np.uint8]:
    """The pixels of any image file, turned upright."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:  # reads the header only
        _check_pixels(opened.height, opened.width)
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):  # convert() would clip its 16 bits instead of scaling them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))


def square(pixels: NDArray[np.uint8], size: int, fit: Fit) -> NDArray[np.uint8]:
    """Resize to [size, size, 3]: squashed, the middle square cut out, or padded with black.

    Area averaging where it shrinks (no aliasing), cubic where it grows.
    """
    height, width = pixels.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    elif fit == "pad":
        side = max(height, width)
        padded = np.zeros((side, side, 3), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        padded[top : top + height, left : left + width] = pixels
        pixels = padded
    shrinks = pixels.shape[0] >= size and pixels.shape[1] >= size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), (size, size), interpolation=how), np.uint8)
