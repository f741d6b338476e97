"""Where the bytes of samples come from: tars on this machine, or remote ones read in long runs ahead of their use."""

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genre_dist.storage import Place, read_range
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.found import Found
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.open_files import is_too_many, most_open_files

if TYPE_CHECKING:
    from concurrent.futures import Future

MOST_OPEN = 4096
CONNECTIONS = 16
"""Requests at a time of one process."""
LONGEST_RUN = 4 << 20
"""Bytes asked for at once."""


def source_of(index: SplitIndex, cache: BlockCache | None) -> "LocalTars | RemoteTars":
    """What reads the shards of an index."""
    return RemoteTars(index, cache) if index.is_remote else LocalTars(index.paths)


class LocalTars:
    """Tars on this machine: one positioned read a sample, nothing kept but a few open files."""

    def __init__(self, paths: Sequence[Place]) -> None:
        self._paths = [str(path) for path in paths]
        # a step reads from as many shards as it has lanes; an evicted file is closed when its last read ends
        self._open = lru_cache(most_open_files(MOST_OPEN))(OpenFile)

    def prepare(self, found: Found) -> None:
        """Nothing is read ahead: the system's page cache does that."""

    def read(self, shard: int, offset: int, room: memoryview) -> memoryview:
        """A sample's bytes, as many as there is room for, fewer where the file ends early; they lie in the room."""
        try:
            return self._open(self._paths[shard]).read(room, offset)
        except OSError as error:
            if not is_too_many(error):
                raise
            self._open.cache_clear()  # other parts of the process have taken theirs
            return self._open(self._paths[shard]).read(room, offset)

    def fetch(self, shard: int, start: int, size: int) -> bytes:
        """Bytes that nobody prepared."""
        return bytes(self.read(shard, start, memoryview(bytearray(size))))


class Rooms:
    """Memory that the bytes of one batch are read into, and those of the next: fresh memory is paged in every time."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def of(self, sizes: Sequence[int]) -> list[memoryview]:
        """Room for so many bytes each; what was in the last ones is gone."""
        total = sum(sizes)
        if total > len(self._memory):
            self._memory = bytearray(total)
        memory, ends = memoryview(self._memory), list(accumulate(sizes))
        return [memory[end - size : end] for size, end in zip(sizes, ends, strict=True)]


class OpenFile:
    """A file descriptor that closes itself; pread, so threads can share it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, room: memoryview, offset: int) -> memoryview:
        """Bytes into the room; the part of it that they take."""
        return room[: os.preadv(self._descriptor, [room], offset)]

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class _Run(NamedTuple):
    """Bytes of neighbouring samples, on their way or there."""

    start: int
    data: "Future[bytes]"


class RemoteTars:
    """Tars behind fsspec: runs of neighbouring samples are got before they are used, each sample's bytes once.

    A run is let go with its last sample, so memory holds the blocks of the lanes being read and those read ahead.
    """

    def __init__(self, index: SplitIndex, cache: BlockCache | None) -> None:
        self._shards, self._paths, self._cache = index.shards, index.paths, cache
        from concurrent.futures import ThreadPoolExecutor  # readers of local tars start faster without

        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._runs: dict[tuple[int, int], _Run] = {}  # by (shard, offset), for every sample not yet taken

    def prepare(self, found: Found) -> None:
        """Begin to get these samples, and those that are to be read ahead; return when these are there.

        Raises ValueError naming a shard that cannot be had.
        """
        shards, records = found.shard, found.record
        if found.ahead is not None:
            shards, records = np.append(found.ahead.shard, shards), np.append(found.ahead.record, records)
        for shard in np.unique(shards).tolist():
            here = records[shards == shard]
            places = dict(zip(here["offset"].tolist(), here["size"].tolist(), strict=True))
            self._start(
                shard, {start: size for start, size in sorted(places.items()) if (shard, start) not in self._runs}
            )
        for shard, offset in zip(found.shard.tolist(), found.record["offset"].tolist(), strict=True):
            self._runs[shard, offset].data.result()

    def _start(self, shard: int, places: dict[int, int]) -> None:
        """Ask for samples of one shard, offset -> size, ascending: neighbours together, up to LONGEST_RUN bytes."""
        run: list[int] = []
        end = 0
        for start, size in [*places.items(), (-1, 0)]:
            if run and (start != end or end + size - run[0] > LONGEST_RUN):
                asked = _Run(run[0], self._pool.submit(self._get, shard, run[0], end))
                self._runs.update(((shard, offset), asked) for offset in run)
                run = []
            run.append(start)
            end = start + size

    def read(self, shard: int, offset: int, room: memoryview) -> memoryview:
        """A sample's bytes, where they came in; they are forgotten here."""
        run = self._runs.pop((shard, offset))
        return memoryview(run.data.result())[offset - run.start : offset - run.start + len(room)]

    def fetch(self, shard: int, start: int, size: int) -> bytes:
        """Bytes that nobody prepared."""
        return self._get(shard, start, start + size)

    def _get(self, number: int, start: int, end: int) -> bytes:
        shard, path = self._shards[number], self._paths[number]

        def fetch(first: int, last: int) -> bytes:
            return read_range(path, first, last, shard.bytes)

        try:
            if end > shard.bytes:
                raise ValueError(f"{path}: the index names byte {end:,}, the manifest {shard.bytes:,} in all")
            if self._cache is None:
                return fetch(start, end)
            return self._cache.read(shard.identity, start, end, shard.bytes, fetch)
        except FileNotFoundError as error:
            raise ValueError(f"{error}; the manifest names it") from None
