"""Samples from tars by place: one positioned read each, nothing kept but a few open files."""

import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream.decode import decode_jpeg
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.tar import members

PADDING, UNKNOWN = 0, 1  # token ids of the first two words of every vocabulary
MEMBER_OF = {"poster": "jpg", "overview": "tokens.npy"}  # extension of each member that a film may lack


@dataclass
class Batch:
    """Samples side by side, on the host. n may be 0: a rank's share of an epoch's last step can be empty."""

    ids: NDArray[np.int64]  # [n]
    labels: NDArray[np.float32]  # [n, genres], 0 or 1
    weights: NDArray[np.float32]  # [n], 0 for a sample that could not be read
    images: NDArray[np.uint8] | None  # [n, size, size, 3] RGB
    tokens: NDArray[np.int32] | None  # [n, longest], padded with PADDING
    lengths: NDArray[np.int64] | None  # [n]
    faults: list[str] = field(default_factory=list)  # one line for each sample that could not be read


class ShardReader:
    """Reads the samples of one split that have the wanted members.

    A sample with a damaged member keeps its place: the member is blank (mid-grey, no words), its weight 0, and a line
    in `Batch.faults` names the shard, the offset and the film.
    """

    def __init__(self, manifest: Manifest, split: str, wanted: tuple[str, ...], max_tokens: int) -> None:
        self.manifest = manifest
        self.index = SplitIndex(manifest, split, wanted)
        self.wanted = wanted
        self.max_tokens = max_tokens
        self._genre_of_id = {genre.id: number for number, genre in enumerate(manifest.genres)}
        self._open = lru_cache(maxsize=64)(_OpenFile)  # an evicted file is closed when its last read ends

    def read(self, rows: Rows) -> Batch:
        """The samples at these places, in this order."""
        records = self.index.records(rows)
        n, size = len(records), int(self.manifest.image["size"])
        has_poster, has_text = "poster" in self.wanted, "overview" in self.wanted
        batch = Batch(
            ids=records["id"].copy(),
            labels=np.zeros((n, len(self.manifest.genres)), np.float32),
            weights=np.ones(n, np.float32),
            images=np.empty((n, size, size, 3), np.uint8) if has_poster else None,
            tokens=None,
            lengths=None,
        )
        texts = [np.empty(0, np.int32)] * n
        for number in range(n):
            try:
                parts = self._members(int(rows.shard[number]), records[number])
                self._label(parts, batch.labels[number])
                if has_text:
                    tokens = load_tokens(parts["tokens.npy"], int(self.manifest.text["words"]))
                    texts[number] = tokens[: self.max_tokens]
                if batch.images is not None:
                    decode_jpeg(parts["jpg"], batch.images[number])
            except (ValueError, KeyError, OSError) as error:
                self._blank(batch, number)
                batch.faults.append(self._describe(int(rows.shard[number]), records[number], error))
        if has_text:
            batch.tokens, batch.lengths = pad(texts)
        return batch

    def _members(self, shard: int, record: NDArray[np.void]) -> dict[str, bytes]:
        """A sample's members by extension."""
        path = self.manifest.folder / self.index.shards[shard].file
        size = int(record["size"])
        data = self._open(str(path)).read(size, int(record["offset"]))
        if len(data) < size:
            raise ValueError(f"the file ends {size - len(data)} bytes early; it is truncated")
        return read_members(data, int(record["id"]))

    def _label(self, parts: dict[str, bytes], out: NDArray[np.float32]) -> None:
        for genre in load_genres(parts["json"]):
            if genre not in self._genre_of_id:
                raise ValueError(f"the genre {genre} is not in the manifest")
            out[self._genre_of_id[genre]] = 1

    def _blank(self, batch: Batch, number: int) -> None:
        batch.weights[number] = 0
        if batch.images is not None:
            batch.images[number] = 128

    def _describe(self, shard: int, record: NDArray[np.void], error: Exception) -> str:
        what = f"no member .{error.args[0]}" if isinstance(error, KeyError) else str(error)
        path = self.manifest.folder / self.index.shards[shard].file
        return f"{path}: film {int(record['id'])} at byte {int(record['offset'])}: {what}"


class _OpenFile:
    """A file descriptor that closes itself; pread, so threads can share it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def pad(texts: Iterable[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token lists -> int32 [n, longest] padded with PADDING (at least one column), and their lengths, int64 [n]."""
    texts = list(texts)
    lengths = np.array([len(text) for text in texts], np.int64)
    tokens = np.full((len(texts), max(1, lengths.max(initial=0))), PADDING, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return tokens, lengths


def read_members(data: bytes, film: int) -> dict[str, bytes]:
    """A sample's members by extension, from its piece of the tar. Raises ValueError if it is another film's piece."""
    parts = {}
    for member in members(data):
        key, _, extension = member.name.partition(".")
        if key != str(film):
            raise ValueError(f"a member {member.name} lies where film {film} should; the index is of another tar")
        parts[extension] = data[member.start : member.start + member.size]
    return parts


def load_tokens(data: bytes, words: int) -> NDArray[np.int32]:
    """A member .tokens.npy -> int32 [length], ids of a vocabulary of `words`. Raises ValueError if it is anything else."""
    try:
        array: Any = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # for a damaged header NumPy raises errors of many kinds
        raise ValueError(f"the tokens are no NumPy array ({error})") from None
    if getattr(array, "ndim", None) != 1 or array.dtype != np.int32:
        raise ValueError("the tokens are no int32 array of one dimension")
    if len(array) and not 0 <= array.min() <= array.max() < words:
        wrong = array[(array < 0) | (array >= words)][0]
        raise ValueError(f"the token {wrong} is outside the vocabulary of {words} words")
    return array


def load_genres(data: bytes) -> list[int]:
    """The genre ids in a member .json. Raises ValueError if there are none."""
    told = json.loads(data)
    genres = told.get("genre_ids") if isinstance(told, dict) else None
    if not isinstance(genres, list) or not all(isinstance(genre, int) for genre in genres):
        raise ValueError("the member .json has no list of genre_ids")
    return genres
