"""Image files of any kind -> RGB pixels of one shape -> JPEG, with a note on unusual files."""

import io
from contextlib import suppress
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from genre_dist.stream.decode import before_pixels

Fit = Literal["squash", "crop", "pad"]

MAX_PIXELS = 64_000_000
"""An image with more pixels is refused before it is decoded (the header of a small file can name any size)."""
MAX_BYTES = 256 << 20
"""A larger file is refused before it is read."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Accepted formats; Pillow has others that start programs (EPS runs Ghostscript)."""
HALVE_FROM = 6
"""Posters this many times larger than the shards' are decoded at half their size, which libjpeg does in the DCT.

Area averaging over 3 pixels or more hides the difference: on 120 real posters of 320 x 474 resized to 53 x 53, it is
42.8 dB on the mean and 35 dB at worst against full decoding, where JPEG quality 90 costs 31 dB. From twice the size on,
the usual choice, it is 31 dB on the mean and 22 dB at worst: visible, as it exceeds the loss of the JPEG.
(Measured with simplejpeg 1.9 on 2026-11-23; benchmarks/pack.py repeats it with generated posters.)
"""
UNTOUCHED = "untouched"
_EXIF_ORIENTATION = 0x0112
_MODES = {"L": "greyscale", "1": "black and white", "P": "palette", "LA": "greyscale with transparency"}
_MODES |= {"RGBA": "transparency", "CMYK": "CMYK", "I;16": "greyscale of 16 bits"}

Image.MAX_IMAGE_PIXELS = None  # the limit above is checked instead, from the header


def square_jpeg(data: bytes, size: int, fit: Fit, quality: int) -> tuple[bytes, str]:
    """An image file -> a JPEG of size x size pixels, and a note on the file ('' for a plain one, see `load_rgb`).

    A plain RGB JPEG that has the shape already keeps its bytes; its note is UNTOUCHED. Raises ValueError as `load_rgb`.
    """
    pixels, odd = load_rgb(data, least=HALVE_FROM * size)
    if not odd and pixels.shape[:2] == (size, size):
        return data, UNTOUCHED
    if pixels.shape[:2] == (1, 1):
        odd = ", ".join(filter(None, [odd, "one pixel"]))
    shaped = square(pixels, size, fit)
    return simplejpeg.encode_jpeg(shaped, quality=quality, colorspace="RGB", colorsubsampling="420"), odd


def load_rgb(data: bytes, least: int | None = None) -> tuple[NDArray[np.uint8], str]:
    """An image file -> uint8 [height, width, 3] RGB, upright, and its difference from a plain RGB JPEG ('' for none).

    Greyscale, CMYK, palettes and transparency become RGB; EXIF rotation is applied. A plain JPEG whose sides are both
    `least` pixels or more is decoded at half its size, if that and its middle fall on whole pixels. A JPEG that libjpeg
    only warns of is decoded, and the note quotes the warning. Raises ValueError for a damaged image, for another kind
    of file, and for more than MAX_PIXELS.
    """
    try:
        if shape := _plain_shape(data):
            with suppress(ValueError):  # simplejpeg refuses files with warnings too; Pillow takes them below
                return _decode(data, *shape, least), ""
        return _general(data)
    except UnidentifiedImageError:
        raise ValueError(f"not a whole image: none of the kinds {', '.join(FORMATS)}") from None
    except Exception as error:  # for damaged files Pillow raises errors of many kinds
        raise ValueError(f"not a whole image: {error}") from None


def _plain_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that needs nothing but decoding; None for every other file, which Pillow reads.

    (Pillow would take 60 us for this answer, a fortieth of packing a poster.)
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixels(height, width)
    plain = colours in ("YCbCr", "RGB")
    head = before_pixels(data)
    if plain and (b"Exif\0" in head or b"tiff:Orientation" in head):
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


def _general(data: bytes) -> tuple[NDArray[np.uint8], str]:
    """The pixels of any image file, turned upright, and a note on its kind."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:  # reads the header only
        _check_pixels(opened.height, opened.width)
        orientation = opened.getexif().get(_EXIF_ORIENTATION, 1)
        odd = [opened.format or ""] if opened.format != "JPEG" else []
        odd += [_warning(data)] if opened.format in ("JPEG", "MPO") else []
        odd += [_MODES.get(opened.mode, f"mode {opened.mode}")] if opened.mode != "RGB" else []
        odd += [f"EXIF orientation {orientation}"] if orientation != 1 else []
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):  # convert() would clip its 16 bits instead of scaling them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB")), ", ".join(filter(None, odd)) or "unusual JPEG"


def _warning(data: bytes) -> str:
    """The warning of libjpeg on a JPEG, '' without one. Raises ValueError if the pixels end before the image does.

    (Pillow raises for files that end early, but not for an end mark that comes too early: it paints the rest grey.)
    """
    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
        simplejpeg.decode_jpeg(data, colorspace="CMYK" if colours in ("CMYK", "YCCK") else "GRAY")
    except ValueError as error:
        if "remature end" in str(error):
            raise
        return str(error)
    return ""


def square(pixels: NDArray[np.uint8], size: int, fit: Fit) -> NDArray[np.uint8]:
    """Resize to [size, size, 3]: squashed, cropped to the middle square, or padded with black.

    Shrinking averages areas (no aliasing), growing is cubic.
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
