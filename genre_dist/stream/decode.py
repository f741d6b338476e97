"""JPEG decoding into memory that is already there, by the fastest decoder at hand.

In this order, which is that of their speed into a given buffer (benchmarks/loader.py): simplejpeg, OpenCV, torchvision.
Any of them may be missing. Only simplejpeg tells damage in the middle of a picture.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    raise ValueError("no JPEG decoder is installed: `pip install simplejpeg` (or opencv-python-headless, torchvision)")


def check_jpeg(data: Data, shape: tuple[int, ...]) -> None:
    """Raises ValueError if a JPEG's head is damaged, its end is missing, or it is not of the shape [height, width, 3].

    A look at both ends, without decoding; needs simplejpeg.
    """
    height, width, _, _ = import_module("simplejpeg").decode_jpeg_header(data)
    _check_shape((height, width), shape)
    _check_end(data)


def _simplejpeg(module: ModuleType) -> Decode:
    def into(data: Data, out: NDArray[np.uint8]) -> None:
        decoded = module.decode_jpeg(data, "RGB", buffer=out)  # refuses a buffer that is too small
        if decoded.shape != out.shape:
            _check_shape(decoded.shape, out.shape)

    return into


def _cv2(module: ModuleType) -> Decode:
    def into(data: Data, out: NDArray[np.uint8]) -> None:
        _check_end(data)
        image = module.imdecode(np.frombuffer(data, np.uint8), module.IMREAD_COLOR)
        if image is None:
            raise ValueError("not a JPEG")
        _check_shape(image.shape, out.shape)
        module.cvtColor(image, module.COLOR_BGR2RGB, dst=out)

    return into


def _torchvision(module: ModuleType) -> Decode:
    import torch

    rgb: Any = module.ImageReadMode.RGB
    decode = torch.ops.image.decode_jpeg  # what torchvision.io.decode_jpeg calls, without its warnings

    def into(data: Data, out: NDArray[np.uint8]) -> None:
        _check_end(data)
        try:
            image = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), rgb.value, False)  # [3, H, W]
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        _check_shape((image.shape[1], image.shape[2]), out.shape)
        torch.from_numpy(out).copy_(image.permute(1, 2, 0))

    return into


DECODERS: dict[str, Callable[[ModuleType], Decode]] = {
    "simplejpeg": _simplejpeg,
    "cv2": _cv2,
    "torchvision.io": _torchvision,
}


def _module(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:  # not installed, or no wheel for this platform
        return None


def _check_end(data: Data) -> None:
    """The end marker, perhaps with zeros behind it: some decoders paint what is missing grey and say nothing."""
    if not bytes(data[-64:]).rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("not a whole JPEG")


def _check_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(shape[:2]) != wanted[:2]:
        raise ValueError(f"an image of {shape[1]} x {shape[0]} where the shards hold {wanted[1]} x {wanted[0]} pixels")
