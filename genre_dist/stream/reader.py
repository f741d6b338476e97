"""Samples from tars by place: one positioned read each, nothing kept but a few open files."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.decode import check_jpeg, decode_jpeg, decoder
from genre_dist.stream.found import Copied, Found, Seconds, find
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.sample import PADDING, check_tokens, label_rows, load_genres, read_members, read_tokens
from genre_dist.stream.slots import Arrays, Room, arrays, private_memory
from genre_dist.stream.source import Rooms, source_of

if TYPE_CHECKING:  # the stream needs no torch
    from torch import Tensor


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
    encodings: NDArray[np.float32] | None = None  # [n, E] in place of images and tokens, from shards of encodings
    seconds: Seconds = field(default_factory=Seconds)
    jpeg_bytes: NDArray[np.int32] | None = None  # [n] if `images` holds JPEGs: how many bytes each row has; 0: none
    pixels: "Tensor | None" = None  # the images on a device that decoded them, uint8 [n, size, size, 3]
    copied: Copied | None = None  # set by whoever copies the arrays in the background: they are needed until then


def part_of(batch: Batch, part: slice) -> Batch:
    """Some samples of a batch, as views; its faults are told once, with the first part."""
    arrays: dict[str, Any] = {
        name: None if (value := getattr(batch, name)) is None else value[part]
        for name in ("ids", "labels", "weights", "images", "tokens", "lengths", "encodings", "jpeg_bytes", "pixels")
    }
    return replace(batch, **arrays, faults=batch.faults if part.start == 0 else [], copied=None)


class ShardReader:
    """Reads the samples of one split that have the wanted members.

    A sample with a damaged member keeps its place: its members are blank (mid-grey, no words), its weight is 0, and a
    line in `Batch.faults` names the shard, the offset and the film.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        wanted: tuple[str, ...],
        max_tokens: int,
        decode: bool = True,
        cache: BlockCache | None = None,
    ) -> None:
        """With decode=False batches carry the JPEGs, for a device that decodes them. The cache is for remote shards."""
        self.manifest, self.split, self.wanted, self.max_tokens = manifest, split, wanted, max_tokens
        self.decode, self.cache = decode, cache
        self.index = SplitIndex(manifest, split, wanted)
        self.has_images, self.has_texts = "poster" in wanted, "overview" in wanted
        if self.has_images:
            decoder()  # if there is none, then better now than in a worker
        self._words = int(manifest.text["words"])
        self._labels = label_rows(manifest.genres)
        self._source, self._rooms = source_of(self.index, cache), Rooms()

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker as what it was made from: open files stay here."""
        return ShardReader, (self.manifest, self.split, self.wanted, self.max_tokens, self.decode, self.cache)

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

    def find(self, rows: Rows) -> Found:
        """Look samples up in the index."""
        return find(self.index, rows)

    def longest(self, found: Found) -> int:
        """Width of the tokens of a batch: its longest text, at least 1."""
        if not self.has_texts:
            return 1
        return max(1, min(self.max_tokens, int(found.record["tokens"].max(initial=0))))

    def read(self, rows: Rows) -> Batch:
        """The samples at these places, in this order, in fresh memory."""
        found = self.find(rows)
        room = self.room(len(rows.row))
        filled = arrays(private_memory(1, room), 0, room, len(rows.row), self.longest(found))
        faults, seconds = self.fill(found, filled)
        return self.batch(filled, [faults], seconds)

    def batch(self, filled: Arrays, told: Sequence[list[str]], seconds: Seconds) -> Batch:
        """Filled arrays as a batch, without those the model does not take; `told` are the faults of its parts."""
        return Batch(
            ids=filled.ids,
            labels=filled.labels,
            weights=filled.weights,
            images=filled.images if self.has_images else None,
            tokens=filled.tokens if self.has_texts else None,
            lengths=filled.lengths if self.has_texts else None,
            faults=[fault for faults in told for fault in faults],
            seconds=seconds,
            jpeg_bytes=None if self.decode or not self.has_images else filled.jpeg_bytes,
        )

    def fill(self, found: Found, out: Arrays) -> tuple[list[str], Seconds]:
        """Read samples into arrays that are already there; returns a line for each fault, and the time it took."""
        began = time.perf_counter()
        shards, record = found.shard.tolist(), found.record
        out.ids[:] = record["id"]
        out.lengths[:], out.labels[:], out.weights[:], out.tokens[:] = 0, 0, 1, PADDING
        self._source.prepare(found)
        films, offsets, sizes = (record[name].tolist() for name in ("id", "offset", "size"))
        posters: list[memoryview | None] = [None] * len(films)
        problems: dict[int, Exception] = {}
        rooms = self._rooms.of(sizes)
        for number, (shard, film, offset, room) in enumerate(zip(shards, films, offsets, rooms, strict=True)):
            try:
                posters[number] = self._fill_one(read_members(self._piece(shard, offset, room), film), number, out)
            except (ValueError, KeyError, OSError) as error:
                problems[number] = error
        self._check_words(out, problems)
        read = time.perf_counter()  # decoded by themselves: in turn with parsing, each finds its caches cold (4 %)
        out.jpeg_bytes[:] = 0
        for number, poster in enumerate(posters):
            if poster is not None and number not in problems:
                try:
                    if self.decode:
                        decode_jpeg(poster, out.images[number])
                    else:
                        out.jpeg_bytes[number] = _keep_jpeg(poster, out.images[number])
                except ValueError as error:
                    problems[number] = error
        for number in problems:
            out.weights[number], out.lengths[number], out.labels[number] = 0, 0, 0
            out.tokens[number], out.images[number] = PADDING, 128
        faults = [self._describe(shards[n], films[n], offsets[n], problems[n]) for n in sorted(problems)]
        return faults, Seconds(read - began, time.perf_counter() - read)

    def _fill_one(self, parts: dict[str, memoryview], number: int, out: Arrays) -> memoryview | None:
        """Labels and text of one sample; returns its poster, not decoded yet."""
        out.labels[number] = self._labels(load_genres(parts["json"]))
        if self.has_texts:
            tokens = read_tokens(parts["tokens.npy"])
            if len(tokens) > self.max_tokens:  # what is cut off is not seen by _check_words
                check_tokens(tokens, self._words)
                tokens = tokens[: self.max_tokens]
            if len(tokens) > out.tokens.shape[1]:
                raise ValueError(f"{len(tokens)} tokens, more than the index has; the index is of another tar")
            out.tokens[number, : len(tokens)] = tokens
            out.lengths[number] = len(tokens)
        return parts["jpg"] if self.has_images else None

    def _check_words(self, out: Arrays, problems: dict[int, Exception]) -> None:
        """Find texts with a token outside the vocabulary; for a whole batch this costs what it costs for one text."""
        if self.has_texts and out.tokens.size and out.tokens.view(np.uint32).max() >= self._words:
            for number, text in enumerate(out.tokens):
                try:
                    check_tokens(text, self._words)
                except ValueError as error:
                    problems.setdefault(number, error)

    def _piece(self, shard: int, offset: int, room: memoryview) -> memoryview:
        """A sample's piece of its tar."""
        data = self._source.read(shard, offset, room)
        if len(data) < len(room):
            raise ValueError(f"the file ends {len(room) - len(data)} bytes early; it is truncated")
        return data

    def _describe(self, shard: int, film: int, offset: int, error: Exception) -> str:
        what = f"no member .{error.args[0]}" if isinstance(error, KeyError) else printable(error)
        return f"{self.index.paths[shard]}: film {film} at byte {offset}: {what}"


def _keep_jpeg(data: memoryview, out: NDArray[np.uint8]) -> int:
    """Put a JPEG of the shape of `out` where its pixels would lie; returns its size. Raises ValueError for another."""
    check_jpeg(data, out.shape)
    if len(data) > out.size:
        raise ValueError(f"a JPEG of {len(data)} bytes, more than its {out.size} pixels take; data.decode=cpu reads it")
    out.reshape(-1)[: len(data)] = data
    return len(data)
