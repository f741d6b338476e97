"""Which part of a poster an epoch shows: a pure function of (seed, epoch, film), whatever the number of ranks."""

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream.order import uniforms

_CROP = 4  # which draw a hash is for; order.py has the others


def crop_boxes(
    ids: NDArray[np.int64],
    seed: int,
    epoch: int,
    scale: tuple[float, float] = (0.6, 1.0),
    ratio: tuple[float, float] = (0.8, 1.25),
    flip: bool = False,
) -> NDArray[np.float32]:
    """Random resized crops: float32 [n, 4] of (left, top, right, bottom) as shares of the picture.

    Area uniform in `scale`, width over height log-uniform in `ratio`, place uniform (Szegedy et al. 2014,
    https://arxiv.org/abs/1409.4842); a side that would be longer than the picture is cut to it. In a mirrored crop left
    is greater than right.
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
