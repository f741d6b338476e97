"""JPEG decoding into a given buffer, by the fastest installed decoder: simplejpeg, else OpenCV (benchmarks/loader.py).

Only simplejpeg detects damage in the middle of an image, but it also refuses images for which libjpeg merely warns;
Pillow decodes such an image if all its pixels are intact.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

END = b"\xff\xd9"
_UNUSUAL_HEAD = re.compile("unknown JFIF revision|Unknown Adobe color transform|bad ICC marker")
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")

Data = bytes | memoryview
Decode = Callable[[Data, NDArray[np.uint8]], None]


def decode_jpeg(data: Data, out: NDArray[np.uint8]) -> None:
    """Decode a JPEG into `out`, uint8 RGB [height, width, 3], contiguous.

    Raises ValueError if it is damaged or of another shape, or if no decoder is installed.
    """
    decoder()(data, out)


@cache
def decoder() -> Decode:
    """The fastest decoder that is installed. Raises ValueError if there is none."""
    for name, make in DECODERS.items():
        if module := _module(name):
            return make(module)
    raise ValueError("no JPEG decoder is installed: `pip install simplejpeg` (or opencv-python-headless)")


def check_jpeg(data: Data, shape: tuple[int, ...]) -> None:
    """Check a JPEG's header and end marker without decoding it; needs simplejpeg.

    Raises ValueError if one of them is damaged, or the image is not of the shape [height, width, 3].
    """
    try:
        size = import_module("simplejpeg").decode_jpeg_header(data)
    except ValueError as error:
        if not _UNUSUAL_HEAD.search(str(error)):
            raise
        with _opened(bytes(data)) as image:
            size = image.height, image.width
    _check_shape(size, shape)
    _check_end(data)


def before_pixels(data: Data) -> Data:
    """A JPEG's segments before its pixels, EXIF among them. (A search of the pixels too took 5 % of packing's time.)"""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] not in (b"\xda", b""):
        position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4]))
    return data[:position] if data[position : position + 2] == b"\xff\xda" else data


def _simplejpeg(module: ModuleType) -> Decode:
    def into(data: Data, out: NDArray[np.uint8]) -> None:
        try:
            decoded = module.decode_jpeg(data, "RGB", buffer=out)  # refuses a buffer that is too small
        except ValueError as error:
            if not _is_harmless(str(error), bytes(data)):
                raise
            decoded = _pillow(bytes(data), out)
        if decoded.shape != out.shape:
            _check_shape(decoded.shape, out.shape)

    return into


def _is_harmless(warning: str, data: bytes) -> bool:
    """Whether the warning concerns no pixel: an unusual header, or zeros before the end marker.

    (Damage in the middle of an image also leaves bytes before the end marker, but not only zeros.)
    """
    if left_over := _LEFT_OVER.search(warning):
        end = data.rfind(END)
        return not data[end - int(left_over[1]) : end].strip(b"\0")
    return _UNUSUAL_HEAD.search(warning) is not None


def _pillow(data: bytes, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode a JPEG for which libjpeg warns. Raises ValueError if it is cut short or of another shape."""
    with _opened(data) as image:
        _check_shape((image.height, image.width), out.shape)
        out[:] = np.asarray(image.convert("RGB"))
    return out


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """A JPEG opened by Pillow; every error of Pillow becomes a ValueError."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            yield image
    except ValueError:
        raise
    except Exception as error:  # for damaged files Pillow raises errors of many kinds
        raise ValueError(f"not a whole JPEG ({error})") from None


def _cv2(module: ModuleType) -> Decode:
    def into(data: Data, out: NDArray[np.uint8]) -> None:
        _check_end(data)
        image = module.imdecode(np.frombuffer(data, np.uint8), module.IMREAD_COLOR)
        if image is None:
            raise ValueError("not a JPEG")
        _check_shape(image.shape, out.shape)
        module.cvtColor(image, module.COLOR_BGR2RGB, dst=out)

    return into


DECODERS: dict[str, Callable[[ModuleType], Decode]] = {
    "simplejpeg": _simplejpeg,
    "cv2": _cv2,
}


def _module(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:  # not installed, or no wheel for this platform
        return None


def _check_end(data: Data) -> None:
    """Raises ValueError without an end marker, which zeros may follow: some decoders paint missing pixels grey."""
    if not bytes(data[-64:]).rstrip(b"\0").endswith(END) and END not in bytes(data[len(before_pixels(data)) :]):
        raise ValueError("not a whole JPEG")


def _check_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(shape[:2]) != wanted[:2]:
        raise ValueError(f"an image of {shape[1]} x {shape[0]} where the shards hold {wanted[1]} x {wanted[0]} pixels")
