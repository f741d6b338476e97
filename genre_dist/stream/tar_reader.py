"""A reader for any WebDataset tars: the bytes of their members, unchanged, in the stream's order."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.stream.batch import Batch, Seconds
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.foreign import Tars, load_links
from genre_dist.stream.indexing import sample_id, split_name
from genre_dist.stream.reader import Reader
from genre_dist.stream.refs import SampleRefs
from genre_dist.stream.tar import FILE, entries

Members: TypeAlias = dict[str, bytes]
"""A sample's members by extension, and its key as `__key__`."""
Links: TypeAlias = dict[int, tuple[int, int]]
"""Offset of a link's header -> offset and size of the file that it names."""


class TarReader(Reader):
    """Reads the samples of listed tars that have the wanted extensions; TrainStream and evaluation_stream take it.

    A worker calls `decode`, a function at the top level of a module, with each sample's members; pickle sends its
    result (or the members) to the trainer, in `Batch.samples`. If it raises ValueError, or the bytes are damaged, the
    sample is None and a fault. `tars` is a pattern of the tars' addresses.
    """

    manifest: Tars

    def __init__(
        self,
        manifest: Tars,
        wanted: tuple[str, ...],
        *,
        tars: str = "*",
        decode: Callable[[Members], Any] | None = None,
        cache: BlockCache | None = None,
    ) -> None:
        super().__init__(manifest, tars, wanted, cache)
        self.decode = decode
        if not self.index.samples:
            have = ", ".join(f"{count:,} .{name}" for name, count in manifest.extensions.most_common()) or "none"
            raise ValueError(f"{manifest.folder}: no sample of {tars} has {' and '.join(wanted)}; there are {have}")
        self._tars, self._links = manifest.shards_of(tars), lru_cache(64)(self._links_of)

    def __reduce__(self) -> tuple[Any, ...]:
        made = partial(TarReader, tars=self.split, decode=self.decode, cache=self.cache)
        return made, (self.manifest, self.wanted)

    def fill(self, refs: SampleRefs, batch: Batch) -> None:
        began, decoding = time.perf_counter(), 0.0
        ids, shards, offsets = refs.record["id"].tolist(), refs.shard.tolist(), refs.record["offset"].tolist()
        batch.ids[:], batch.weights[:] = ids, 1
        batch.samples = [None] * len(ids)

        def take(number: int, data: memoryview) -> None:
            nonlocal decoding
            sample = self._members(data, ids[number], shards[number], offsets[number])
            if self.decode is not None:
                before = time.perf_counter()
                sample = _decoded(self.decode, sample)
                decoding += time.perf_counter() - before
            batch.samples[number] = sample

        for number, (error, data) in self.take_each(refs, take).items():
            batch.weights[number] = 0
            batch.faults.append(self.describe(refs, number, f"sample {_key_of(data) or ids[number]}", error))
        batch.seconds = Seconds(time.perf_counter() - began - decoding, decoding)

    def _members(self, data: memoryview, number: int, shard: int, offset: int) -> Members:
        """The members in a sample's bytes of the tar; links are resolved."""
        key, found = members_at(data, offset, partial(self._links, shard), partial(self._source.fetch, shard))
        if sample_id(key) != number:
            raise ValueError(f"the sample {printable(key)!r} lies there; the index is of another tar")
        members: dict[str, Any] = {"__key__": key} | {name: bytes(content) for name, content in found.items()}
        for name in self.wanted:
            if name not in members:
                raise ValueError(f"no member .{name}")
        return members

    def _links_of(self, shard: int) -> Links:
        return links_of(load_links(self.manifest.folder, self._tars[shard]))


def links_of(links: NDArray[np.int64]) -> Links:
    """The links of a tar by their headers; links: int64 [n, 3], see `TarIndex.links`."""
    return {header: (start, size) for header, start, size in links.tolist()}


def members_at(
    data: memoryview, offset: int, links: Callable[[], Links], fetch: Callable[[int, int], bytes | memoryview]
) -> tuple[str, dict[str, memoryview]]:
    """Key and members by extension of the sample whose bytes lie at `offset` in a tar.

    A link has the bytes that fetch(start, size) returns for its target. Raises ValueError for no or two samples.
    """
    members: dict[str, memoryview] = {}
    key = None
    for name, start, length, header, kind, _ in entries(data):
        if (named := split_name(name)) is None:
            continue
        if kind == FILE:
            content = data[start : start + length]
        elif target := links().get(offset + header):
            content = memoryview(fetch(*target))
        else:
            continue
        if key not in (None, named[0]):
            raise ValueError(f"a member {printable(name)!r} lies there; the index is of another tar")
        key = named[0]
        members[named[1]] = content
    if key is None:
        raise ValueError("the index is of another tar")
    return key, members


def _decoded(decode: Callable[[Members], Any], sample: Members) -> Any:
    """The result of `decode`. Raises ValueError for any error of it: users' code may raise anything."""
    try:
        return decode(sample)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__} in {decode.__name__}: {error}") from None


def _key_of(data: memoryview) -> str:
    """The key in a sample's first header; "" if that header is unreadable."""
    with suppress(ValueError):
        for entry in entries(data):
            if named := split_name(entry.name):
                return printable(named[0])
    return ""
