"""Samples of anyone's WebDataset tars as they are: the bytes of their members, in our order."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.foreign import Tars, load_links
from genre_dist.stream.found import Copied, Found, Seconds, find
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.indexing import sample_id, split_name
from genre_dist.stream.order import Rows
from genre_dist.stream.slots import Arrays, Room, arrays, private_memory
from genre_dist.stream.source import Rooms, source_of
from genre_dist.stream.tar import FILE, entries

Members: TypeAlias = dict[str, bytes]
"""A sample's members by extension, and its key as `__key__`."""


@dataclass
class Samples:
    """Samples side by side. One that could not be read is None."""

    ids: NDArray[np.int64]  # [n] the number that the key is, or a hash of the key
    samples: list[Any]  # [n] Members, or what `decode` made of them
    faults: list[str] = field(default_factory=list)  # one line for each sample that could not be read
    seconds: Seconds = field(default_factory=Seconds)
    copied: Copied | None = None  # as for `Batch`


class TarReader:
    """Reads the samples of listed tars that have the wanted extensions; TrainStream and evaluation_stream take it.

    `decode`, a function at the top of a module, is called in the worker with each sample's members; what it returns
    goes to the trainer by pickle. Where it raises ValueError, or the bytes are damaged, the sample is a fault. `tars`
    is a pattern of the tars' addresses.
    """

    has_texts = False  # no lengths: samples cannot be ordered by them

    def __init__(
        self,
        manifest: Tars,
        wanted: tuple[str, ...],
        *,
        tars: str = "*",
        decode: Callable[[Members], Any] | None = None,
        cache: BlockCache | None = None,
    ) -> None:
        self.manifest, self.wanted, self.tars, self.decode, self.cache = manifest, wanted, tars, decode, cache
        self.index = SplitIndex(manifest, tars, wanted)
        if not self.index.samples:
            have = ", ".join(f"{count:,} .{name}" for name, count in manifest.extensions.most_common()) or "none"
            raise ValueError(f"{manifest.folder}: no sample of {tars} has {' and '.join(wanted)}; there are {have}")
        self._source, self._rooms = source_of(self.index, cache), Rooms()
        self._tars, self._links = manifest.shards_of(tars), lru_cache(64)(self._links_of)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker as what it was made from."""
        made = partial(TarReader, tars=self.tars, decode=self.decode, cache=self.cache)
        return made, (self.manifest, self.wanted)

    def room(self, samples: int) -> Room:
        """Samples come through the pipe: they are of any size, so that they need no room in the slots."""
        return Room(samples=samples, genres=0, image_size=0, max_tokens=0)

    def lengths(self, rows: Rows) -> NDArray[np.int64]:
        """Nothing is known of lengths, int64 [n]."""
        return np.zeros(len(rows.row), np.int64)

    def find(self, rows: Rows) -> Found:
        """Look samples up in the index."""
        return find(self.index, rows)

    def longest(self, found: Found) -> int:
        """Width of the tokens, of which there are none."""
        return 1

    def read(self, rows: Rows) -> Samples:
        """The samples at these places, in this order."""
        found = self.find(rows)
        room = self.room(len(rows.row))
        filled = arrays(private_memory(1, room), 0, room, len(rows.row), 1)
        told, seconds = self.fill(found, filled)
        return self.batch(filled, [told], seconds)

    def batch(self, filled: Arrays, told: Sequence[tuple[list[Any], list[str]]], seconds: Seconds) -> Samples:
        """What the parts of a batch brought, in order, as one."""
        samples = [sample for samples, _ in told for sample in samples]
        return Samples(filled.ids, samples, [fault for _, faults in told for fault in faults], seconds)

    def fill(self, found: Found, out: Arrays) -> tuple[tuple[list[Any], list[str]], Seconds]:
        """Read samples: they and a line for each fault, and the time it took. Their ids go into the array."""
        began, decoding = time.perf_counter(), 0.0
        out.ids[:] = found.record["id"]
        self._source.prepare(found)
        samples: list[Any] = []
        faults = []
        columns = (found.shard, found.record["id"], found.record["offset"])
        rooms = self._rooms.of(found.record["size"].tolist())
        for shard, number, offset, room in zip(*(column.tolist() for column in columns), rooms, strict=True):
            piece = room[:0]
            try:
                piece = self._source.read(shard, offset, room)
                if len(piece) < len(room):
                    raise ValueError(f"the file ends {len(room) - len(piece)} bytes early; it is truncated")
                sample = self._members(piece, number, shard, offset)
                if self.decode is not None:
                    before = time.perf_counter()
                    sample = _decoded(self.decode, sample)
                    decoding += time.perf_counter() - before
                samples.append(sample)
            except (ValueError, OSError) as error:
                samples.append(None)
                named = _key_of(piece) or number
                faults.append(f"{self.index.paths[shard]}: sample {named} at byte {offset}: {printable(error)}")
        return (samples, faults), Seconds(time.perf_counter() - began - decoding, decoding)

    def _members(self, data: memoryview, number: int, shard: int, offset: int) -> Members:
        """The members in a sample's piece of its tar, those that are links read where they lead."""
        found: dict[str, Any] = {}
        key = None
        for name, start, length, header, kind, _ in entries(data):
            if (named := split_name(name)) is None:
                continue
            if kind == FILE:
                content = bytes(data[start : start + length])
            elif place := self._links(shard).get(offset + header):
                content = self._source.fetch(shard, *place)
            else:
                continue
            if named[0] != key:
                if key is not None or sample_id(named[0]) != number:
                    raise ValueError(f"a member {name!r} lies there; the index is of another tar")
                found["__key__"] = key = named[0]
            found[named[1]] = content
        if key is None:
            raise ValueError("the index is of another tar")
        for name in self.wanted:
            if name not in found:
                raise ValueError(f"no member .{name}")
        return found

    def _links_of(self, shard: int) -> dict[int, tuple[int, int]]:
        """Where a link's header begins -> where the file begins that it leads to, and its size."""
        links = load_links(self.manifest.folder, self._tars[shard])
        return {header: (start, size) for header, start, size in links.tolist()}


def _decoded(decode: Callable[[Members], Any], sample: Members) -> Any:
    """What `decode` makes of a sample. Raises ValueError for whatever it raises: other people's code, on any data."""
    try:
        return decode(sample)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__} in {decode.__name__}: {error}") from None


def _key_of(piece: memoryview) -> str:
    """The key that a sample's piece begins with; "" where that cannot be read."""
    with suppress(ValueError):
        for entry in entries(piece):
            if named := split_name(entry.name):
                return printable(named[0])
    return ""
