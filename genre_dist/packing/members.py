"""One film's members as bytes of a tar, exactly as tarfile and np.save write them."""

import io
import json
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream import tar
from genre_dist.stream.index import save_array


def sample(film: dict[str, Any], poster: bytes | None, tokens: NDArray[np.int32] | None) -> bytes:
    """The members of one film as bytes of a tar, in the order json, jpg, tokens.npy."""
    key = str(film["tmdb_id"])
    about = {name: film[name] for name in ("tmdb_id", "title", "genre_ids", "release_date")}
    members = {"json": json.dumps(about, ensure_ascii=False).encode()}
    if poster is not None:
        members["jpg"] = poster
    if tokens is not None:
        members["tokens.npy"] = _array_head(len(tokens)) + tokens.tobytes()
    blocks = []
    for extension, data in members.items():
        blocks += [tar.header(f"{key}.{extension}", len(data)), data, bytes(tar.padded(len(data)) - len(data))]
    return b"".join(blocks)


@lru_cache(maxsize=4096)
def _array_head(length: int) -> bytes:
    """The header that np.save writes for an int32 [length]."""
    buffer = io.BytesIO()
    save_array(np.empty(length, np.int32), buffer)
    return buffer.getvalue()[: -4 * length] if length else buffer.getvalue()
