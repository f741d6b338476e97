"""In which order frozen encoders encode a shard."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.stream.order import Rows
from genre_dist.training.encode_once import WINDOW, _windows


class Reader:
    """A shard whose texts have these lengths."""

    def __init__(self, lengths: list[int], remote: bool) -> None:
        self.index = SimpleNamespace(sizes=[len(lengths)], is_remote=remote)
        self._lengths = np.array(lengths, np.int64)

    def lengths(self, rows: Rows) -> np.ndarray[Any, Any]:
        return self._lengths[rows.row]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 160), max_size=300), most=st.integers(1, 5), remote=st.booleans())
def test_every_sample_is_encoded_once_beside_texts_of_its_length_or_from_afar_beside_its_neighbours(
    lengths: list[int], most: int, remote: bool
) -> None:
    windows = list(_windows(cast(Any, Reader(lengths, remote)), 0, most))
    first = 0
    for window in windows:
        rows = np.concatenate(window)
        assert sorted(rows.tolist()) == list(range(first, first + len(rows)))  # a window is one piece of the shard
        assert (np.diff(rows if remote else np.array(lengths)[rows]) >= 0).all()
        assert all(len(chunk) == most for chunk in window[:-1])
        assert len(window) == WINDOW or window is windows[-1]
        first += len(rows)
    assert first == len(lengths)
