"""Shards of encodings: what frozen encoders make of the films, read in place of posters and overviews.

The same tars, index and manifest as other shards, with a member `<id>.encoding.npy` (float32) for the media, and the
same samples in the same places: so the same order. A film whose media could not be read is there with the encoding of
blanks and the reason in its .json.
"""

import io
import json
import time

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.stream import tar
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.found import Seconds
from genre_dist.stream.index import SplitIndex, array_in, save_array
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import Batch, ShardReader
from genre_dist.stream.sample import label_rows, load_about, load_genres, read_members
from genre_dist.stream.source import LocalTars, Rooms

MEMBER = "encoding.npy"


class EncodingReader:
    """Reads the samples of one split of encoded shards. As `ShardReader`, but in the trainer's process only."""

    def __init__(self, manifest: Manifest, split: str, wanted: tuple[str, ...], max_tokens: int) -> None:
        assert manifest.encoding is not None
        self.manifest, self.split, self.wanted, self.max_tokens = manifest, split, wanted, max_tokens
        self.index = SplitIndex(manifest, split, wanted)
        self.has_images, self.has_texts = False, "overview" in wanted
        self._width = int(manifest.encoding["size"])
        self._head = _saved(np.zeros(self._width, np.float32))[: -4 * self._width]
        self._labels = label_rows(manifest.genres)
        self._source, self._rooms = LocalTars(self.index.paths), Rooms()

    def lengths(self, rows: Rows) -> NDArray[np.int64]:
        """Lengths of the texts the encodings were made from, int64 [n]."""
        return np.minimum(self.index.records(rows)["tokens"].astype(np.int64), self.max_tokens)

    def read(self, rows: Rows) -> Batch:
        """The samples at these places, in this order.

        Raises ValueError naming the shard if an encoding cannot be read: it can be made again, so it is no fault of the
        film's.
        """
        began = time.perf_counter()
        records = self.index.records(rows)
        batch = Batch(
            ids=records["id"].copy(),
            labels=np.zeros((len(records), len(self.manifest.genres)), np.float32),
            weights=np.ones(len(records), np.float32),
            images=None,
            tokens=None,
            lengths=None,
            encodings=np.empty((len(records), self._width), np.float32),
        )
        rooms = self._rooms.of(records["size"].tolist())
        places = zip(rows.shard.tolist(), *(records[name].tolist() for name in ("id", "offset")), rooms, strict=True)
        for number, (shard, film, offset, room) in enumerate(places):
            try:
                self._fill(read_members(self._source.read(shard, offset, room), film), number, batch)
            except (ValueError, KeyError, OSError) as error:
                told = f"no member .{error.args[0]}" if isinstance(error, KeyError) else printable(error)
                raise ValueError(
                    f"{self.index.paths[shard]}: the encoding of film {film} cannot be read ({told}); delete "
                    f"{self.manifest.folder}, it is made again"
                ) from None
        batch.seconds = Seconds(read=time.perf_counter() - began)
        return batch

    def _fill(self, parts: dict[str, memoryview], number: int, batch: Batch) -> None:
        assert batch.encodings is not None
        batch.encodings[number] = self._numbers(parts[MEMBER])
        if fault := _fault(parts["json"]):
            batch.weights[number] = 0
            batch.faults.append(fault)
        else:
            batch.labels[number] = self._labels(load_genres(parts["json"]))

    def _numbers(self, data: memoryview) -> NDArray[np.float32]:
        """A member encoding.npy -> float32 [E]. Raises ValueError if it is anything else."""
        if data[: len(self._head)] == self._head and len(data) == len(self._head) + 4 * self._width:
            numbers = np.frombuffer(data, np.float32, offset=len(self._head))
        else:  # a head that another NumPy wrote: to parse it takes ten times as long
            numbers = array_in(data)
        if numbers.dtype != np.float32 or numbers.shape != (self._width,) or not np.isfinite(numbers).all():
            raise ValueError(f"not {self._width} finite numbers")
        return numbers


def _fault(data: memoryview) -> str | None:
    """Why a film's media could not be read, None if they could. Raises ValueError for a damaged member .json."""
    fault = load_about(data).get("fault")
    if fault is not None and not isinstance(fault, str):
        raise ValueError("the fault in the member .json is no text")
    return None if fault is None else printable(fault)


Reader = ShardReader | EncodingReader


def open_reader(
    manifest: Manifest,
    split: str,
    wanted: tuple[str, ...],
    max_tokens: int,
    decode: bool = True,
    cache: BlockCache | None = None,
) -> Reader:
    """The reader that a manifest's shards take."""
    if manifest.encoding is not None:
        return EncodingReader(manifest, split, wanted, max_tokens)
    return ShardReader(manifest, split, wanted, max_tokens, decode, cache)


def encoded_sample(film: int, genre_ids: list[int], encoding: NDArray[np.float32], fault: str | None) -> bytes:
    """The members of one film as a piece of a tar: json, encoding.npy. encoding: float32 [E]."""
    about = {"tmdb_id": film, "genre_ids": genre_ids} | ({"fault": fault} if fault else {})
    pieces = []
    for extension, data in (("json", json.dumps(about).encode()), (MEMBER, _saved(encoding))):
        pieces += [tar.header(f"{film}.{extension}", len(data)), data, bytes(tar.padded(len(data)) - len(data))]
    return b"".join(pieces)


def _saved(encoding: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    save_array(encoding, buffer)
    return buffer.getvalue()
