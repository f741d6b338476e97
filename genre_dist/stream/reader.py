"""Samples from tars by place: one positioned read each, nothing kept but a few open files."""

import io
import json
import os
import re
import resource
import time
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
from genre_dist.stream.slots import Arrays, Room, arrays, slot_bytes
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
    read_seconds: float = 0.0  # time spent on reading and decoding it, over all workers


class ShardReader:
    """Reads the samples of one split that have the wanted members.

    A sample with a damaged member keeps its place: its members are blank (mid-grey, no words), its weight is 0, and a
    line in `Batch.faults` names the shard, the offset and the film.
    """

    def __init__(self, manifest: Manifest, split: str, wanted: tuple[str, ...], max_tokens: int) -> None:
        self.manifest, self.split, self.wanted, self.max_tokens = manifest, split, wanted, max_tokens
        self.index = SplitIndex(manifest, split, wanted)
        self.has_images, self.has_texts = "poster" in wanted, "overview" in wanted
        self._words = int(manifest.text["words"])
        self._genre_of_id = {genre.id: number for number, genre in enumerate(manifest.genres)}
        self._open = lru_cache(_most_open_files())(_OpenFile)  # an evicted file is closed when its last read ends

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker as what it was made from: open files stay here."""
        return ShardReader, (self.manifest, self.split, self.wanted, self.max_tokens)

    def room(self, samples: int) -> Room:
        """The room a batch of this many samples needs."""
        return Room(
            samples=samples,
            genres=len(self.manifest.genres),
            image_size=int(self.manifest.image["size"]) if self.has_images else 0,
            max_tokens=self.max_tokens if self.has_texts else 0,
        )

    def lengths(self, rows: Rows) -> NDArray[np.int64]:
        """Lengths of the texts at these places as they will be read, from the index, int64 [n]."""
        return np.minimum(self.index.records(rows)["tokens"].astype(np.int64), self.max_tokens)

    def longest(self, rows: Rows) -> int:
        """Width of the tokens of a batch: its longest text, at least 1."""
        if not self.has_texts or not len(rows.row):
            return 1
        return max(1, int(self.lengths(rows).max()))

    def read(self, rows: Rows) -> Batch:
        """The samples at these places, in this order, in fresh memory."""
        room = self.room(len(rows.row))
        filled = arrays(bytearray(slot_bytes(room)), 0, room, len(rows.row), self.longest(rows))
        began = time.perf_counter()
        faults = self.fill(rows, filled)
        return self.batch(filled, faults, time.perf_counter() - began)

    def batch(self, filled: Arrays, faults: list[str], read_seconds: float) -> Batch:
        """Filled arrays as a batch, without those the model does not take."""
        return Batch(
            ids=filled.ids,
            labels=filled.labels,
            weights=filled.weights,
            images=filled.images if self.has_images else None,
            tokens=filled.tokens if self.has_texts else None,
            lengths=filled.lengths if self.has_texts else None,
            faults=faults,
            read_seconds=read_seconds,
        )

    def fill(self, rows: Rows, out: Arrays) -> list[str]:
        """Read the samples at these places into arrays that are already there; returns a line for each fault."""
        records = self.index.records(rows)
        out.ids[:] = records["id"]
        out.lengths[:], out.labels[:], out.weights[:], out.tokens[:] = 0, 0, 1, PADDING
        faults = []
        for number, (shard, film, offset, size) in enumerate(
            zip(rows.shard.tolist(), *(records[name].tolist() for name in ("id", "offset", "size")), strict=True)
        ):
            try:
                self._fill_one(self._members(shard, film, offset, size), number, out)
            except (ValueError, KeyError, OSError) as error:
                out.weights[number], out.lengths[number], out.labels[number] = 0, 0, 0
                out.tokens[number], out.images[number] = PADDING, 128
                faults.append(self._describe(shard, film, offset, error))
        return faults

    def _fill_one(self, parts: dict[str, memoryview], number: int, out: Arrays) -> None:
        for genre in load_genres(parts["json"]):
            if genre not in self._genre_of_id:
                raise ValueError(f"the genre {genre} is not in the manifest")
            out.labels[number, self._genre_of_id[genre]] = 1
        if self.has_texts:
            tokens = load_tokens(parts["tokens.npy"], self._words)[: self.max_tokens]
            if len(tokens) > out.tokens.shape[1]:
                raise ValueError(f"{len(tokens)} tokens, more than the index has; the index is of another tar")
            out.tokens[number, : len(tokens)] = tokens
            out.lengths[number] = len(tokens)
        if self.has_images:
            decode_jpeg(parts["jpg"], out.images[number])

    def _members(self, shard: int, film: int, offset: int, size: int) -> dict[str, memoryview]:
        """A sample's members by extension."""
        path = f"{self.manifest.folder}/{self.index.shards[shard].file}"
        data = self._open(path).read(size, offset)
        if len(data) < size:
            raise ValueError(f"the file ends {size - len(data)} bytes early; it is truncated")
        return read_members(data, film)

    def _describe(self, shard: int, film: int, offset: int, error: Exception) -> str:
        what = f"no member .{error.args[0]}" if isinstance(error, KeyError) else str(error)
        return f"{self.manifest.folder / self.index.shards[shard].file}: film {film} at byte {offset}: {what}"


def _most_open_files() -> int:
    """Half of what the system lets a process open; a step reads from as many shards as it has lanes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(4096, soft // 2)


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


def read_members(data: bytes, film: int) -> dict[str, memoryview]:
    """A sample's members by extension, from its piece of the tar. Raises ValueError if it is another film's piece."""
    view, key, parts = memoryview(data), str(film), {}
    for name, start, size, _ in members(data):
        owner, _, extension = name.partition(".")
        if owner != key:
            raise ValueError(f"a member {name} lies where film {film} should; the index is of another tar")
        parts[extension] = view[start : start + size]
    return parts


_PLAIN_TOKENS = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<i4', 'fortran_order': False, 'shape': \((\d+),\), \} *\n", re.DOTALL
)


def load_tokens(data: bytes | memoryview, words: int) -> NDArray[np.int32]:
    """A member .tokens.npy -> int32 [length], ids of a vocabulary of `words`. ValueError if it is anything else."""
    plain = _PLAIN_TOKENS.match(data)  # np.load takes 40 us to parse this header, more than all other parsing here
    if plain and len(data) == plain.end() + 4 * int(plain[1]):
        array: Any = np.frombuffer(data, np.int32, offset=plain.end())
    else:
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # for a damaged header NumPy raises errors of many kinds
            raise ValueError(f"the tokens are no NumPy array ({error})") from None
    if getattr(array, "ndim", None) != 1 or array.dtype != np.int32:
        raise ValueError("the tokens are no int32 array of one dimension")
    if len(array) and array.view(np.uint32).max() >= words:  # negative ones are large as unsigned
        wrong = array[(array < 0) | (array >= words)][0]
        raise ValueError(f"the token {wrong} is outside the vocabulary of {words} words")
    return array


def load_genres(data: bytes | memoryview) -> list[int]:
    """The genre ids in a member .json. Raises ValueError if there are none."""
    told = json.loads(bytes(data))
    genres = told.get("genre_ids") if isinstance(told, dict) else None
    if not isinstance(genres, list) or not all(isinstance(genre, int) for genre in genres):
        raise ValueError("the member .json has no list of genre_ids")
    return genres
