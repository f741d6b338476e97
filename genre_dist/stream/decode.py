"""JPEG decoding into memory that is already there.

simplejpeg is the fastest decoder we know that writes into a given buffer (benchmarks/loader.py); OpenCV stands in where
it is not installed.
"""

import numpy as np
from numpy.typing import NDArray

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None


def decode_jpeg(data: bytes | memoryview, out: NDArray[np.uint8]) -> None:
    """Decode a JPEG into `out`, uint8 RGB [height, width, 3], contiguous.

    Raises ValueError if it is damaged or of another shape.
    """
    if simplejpeg is not None:
        decoded = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)  # refuses a buffer that is too small
        _check_shape(decoded.shape[:2], out)
        return
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None or not bytes(data).rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("not a whole JPEG")
    _check_shape(image.shape[:2], out)
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)


def _check_shape(shape: tuple[int, ...], out: NDArray[np.uint8]) -> None:
    if tuple(shape) != out.shape[:2]:
        raise ValueError(
            f"an image of {shape[1]} x {shape[0]} where the shards hold {out.shape[1]} x {out.shape[0]} pixels"
        )
