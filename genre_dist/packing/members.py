"""One film's members as a piece of a tar, byte for byte what tarfile and np.save write."""

import io
import json
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream import tar
from genre_dist.stream.index import save_array


def sample(film: dict[str, Any], poster: bytes | None, tokens: NDArray[np.int32] | None) -> bytes:
    """The members of one film as a piece of a tar, in the order json, jpg, tokens.npy."""
    key = str(film["tmdb_id"])
    about = {name: film[name] for name in ("tmdb_id", "title", "genre_ids", "release_date")}
    parts = {"json": json.dumps(about, ensure_ascii=False).encode()}
    if poster is not None:
        parts["jpg"] = poster
    if tokens is not None:
        parts["tokens.npy"] = _array_head(len(tokens)) + tokens.tobytes()
    pieces = []
    for extension, data in parts.items():
        pieces += [tar.header(f"{key}.{extension}", len(data)), data, bytes(tar.padded(len(data)) - len(data))]
    return b"".join(pieces)


@lru_cache(maxsize=4096)
def _array_head(length: int) -> bytes:
    """What np.save writes before the numbers of an int32 [length]."""
    buffer = io.BytesIO()
    save_array(np.empty(length, np.int32), buffer)
    return buffer.getvalue()[: -4 * length] if length else buffer.getvalue()
