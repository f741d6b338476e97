"""The vocabulary of shards and its word vectors, read and checked against the manifest."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from genre_dist.storage import AnyPath, read_bytes
from genre_dist.stream.index import LONGEST_HEAD, DamagedArrayError, load_array
from genre_dist.stream.manifest import Text

SPECIAL = ("<pad>", "<unk>")  # ids 0 and 1, as in stream.sample
_REMEDY = "restore it, or pack the shards again (--overwrite)"


def load_words(path: AnyPath, sha256: str = "") -> dict[str, int]:
    """The ids of a vocabulary's words; the file has one word a line.

    Raises ValueError if the file is missing or no vocabulary or, given a checksum (`vocabulary_sha256` of the manifest
    or the run), another vocabulary: words in another order would give every token a wrong meaning.
    """
    try:
        written = read_bytes(path)
        words = written.decode().split("\n")
    except FileNotFoundError:
        raise ValueError(f"{path}: the vocabulary is missing; {_REMEDY}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the vocabulary is no UTF-8 text (byte {error.start}); {_REMEDY}") from None
    if sha256 and hashlib.sha256(written).hexdigest() != sha256:
        raise ValueError(f"{path}: not the vocabulary the shards were packed with; {_REMEDY}")
    ids = {word: number for number, word in enumerate(words[:-1])}
    if words.pop() or tuple(words[:2]) != SPECIAL or len(ids) != len(words) or "" in ids:
        raise ValueError(
            f"{path}: not a vocabulary: one word a line, none twice, {' and '.join(SPECIAL)} first; {_REMEDY}"
        )
    return ids


def load_vectors(folder: AnyPath, text: Text) -> NDArray[np.float32] | None:
    """The word vectors that a manifest's `text` describes, float32 [words, dim], mapped if they are local.

    None if the shards have none. Raises ValueError, before allocating memory, if the file is missing, damaged or wrong.
    """
    if text["vectors"] is None or text["dim"] is None:
        return None
    path, shape = folder / text["vectors"], (text["words"], text["dim"])
    try:
        vectors = load_array(path, LONGEST_HEAD + 4 * shape[0] * shape[1])
    except FileNotFoundError:
        raise ValueError(f"{path}: the word vectors are missing; {_REMEDY}") from None
    except DamagedArrayError as error:
        raise ValueError(f"{path}: {error}; {_REMEDY}") from None
    if vectors.dtype != np.float32 or vectors.shape != shape:
        raise ValueError(
            f"{path}: {vectors.dtype} {list(vectors.shape)} where the manifest has float32 {list(shape)}; {_REMEDY}"
        )
    if text.get("vectors_sha256") not in (None, vectors_sha256(vectors)):
        raise ValueError(f"{path}: not the word vectors the shards were packed with; {_REMEDY}")
    return vectors


def vectors_sha256(vectors: NDArray[np.float32]) -> str:
    """The checksum of word vectors in a manifest."""
    return hashlib.sha256(vectors.data).hexdigest()
