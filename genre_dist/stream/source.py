"""Sources of samples' bytes: local tars, or remote ones that are prefetched in long runs."""

import errno
import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genre_dist.storage import AnyPath, read_range
from genre_dist.stream.cache import BlockCache

if TYPE_CHECKING:
    from concurrent.futures import Future

    from genre_dist.stream.index import SplitIndex
    from genre_dist.stream.refs import SampleRefs

MOST_OPEN = 4096
OPEN_FILES_SHARE = 8
"""Divisor of the limit: a process may have readers for training and evaluation, each with tars and indexes."""
CONNECTIONS = 16
"""Concurrent requests of one process."""
LONGEST_RUN = 4 << 20
"""Bytes of the longest request."""


def source_of(index: "SplitIndex", cache: BlockCache | None) -> "LocalTars | RemoteTars":
    """The source for the shards of an index."""
    return RemoteTars(index, cache) if index.is_remote else LocalTars(index.paths)


class LocalTars:
    """Tars on this machine: one positioned read a sample, no data kept but a few open files."""

    def __init__(self, paths: Sequence[AnyPath]) -> None:
        self._paths = [str(path) for path in paths]
        # a step reads from as many shards as it has lanes; an evicted file is closed when its last read ends
        self._open = lru_cache(most_open_files(MOST_OPEN))(OpenFile)

    def prepare(self, refs: "SampleRefs") -> None:
        """Prefetch nothing: the kernel's page cache reads ahead."""

    def read(self, shard: int, offset: int, buffer: memoryview) -> memoryview:
        """Fill `buffer` with a sample's bytes; returns the part that was read, shorter if the file ends early."""
        try:
            return self._open(self._paths[shard]).read(buffer, offset)
        except OSError as error:
            if not is_too_many(error):
                raise
            self._open.cache_clear()  # other parts of the process hold open files
            return self._open(self._paths[shard]).read(buffer, offset)

    def fetch(self, shard: int, start: int, size: int) -> bytes:
        """Read bytes without a preceding `prepare`."""
        return bytes(self.read(shard, start, memoryview(bytearray(size))))


class ReadBuffer:
    """Reused memory for the bytes of a batch: fresh memory would be paged in every time."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def split(self, sizes: Sequence[int]) -> list[memoryview]:
        """A view for each size; the views of the previous call are overwritten."""
        total = sum(sizes)
        if total > len(self._memory):
            self._memory = bytearray(total)
        memory, ends = memoryview(self._memory), list(accumulate(sizes))
        return [memory[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def most_open_files(most: int) -> int:
    """How many files one part of a reader may hold open: up to `most`, fewer under a low system limit.

    The soft limit of this process and its children is raised to the hard limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // OPEN_FILES_SHARE))


def is_too_many(error: OSError) -> bool:
    """Whether the limit of open files caused an error."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


class OpenFile:
    """A file descriptor that closes itself; pread, so threads can share it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, buffer: memoryview, offset: int) -> memoryview:
        """Read into the buffer; returns the part that was read."""
        return buffer[: os.preadv(self._descriptor, [buffer], offset)]

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class _Run(NamedTuple):
    """Bytes of neighbouring samples, requested or received."""

    start: int
    data: "Future[bytes]"


class RemoteTars:
    """Tars behind fsspec: runs of neighbouring samples are prefetched, each sample's bytes once.

    The last sample of a run releases it, so memory holds the current and the prefetched blocks of the lanes.
    """

    def __init__(self, index: "SplitIndex", cache: BlockCache | None) -> None:
        self._shards, self._paths, self._cache = index.shards, index.paths, cache
        from concurrent.futures import ThreadPoolExecutor  # readers of local tars start faster without this import

        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._runs: dict[tuple[int, int], _Run] = {}  # by (shard, offset), for every sample not yet taken

    def prepare(self, refs: "SampleRefs") -> None:
        """Request these samples and those to prefetch; return when these have arrived.

        Raises ValueError with the shard that cannot be read.
        """
        shards, records = refs.shard, refs.record
        if refs.prefetch is not None:
            shards, records = np.append(refs.prefetch.shard, shards), np.append(refs.prefetch.record, records)
        for shard in np.unique(shards).tolist():
            here = records[shards == shard]
            sizes = dict(zip(here["offset"].tolist(), here["size"].tolist(), strict=True))
            self._start(
                shard, {start: size for start, size in sorted(sizes.items()) if (shard, start) not in self._runs}
            )
        for shard, offset in zip(refs.shard.tolist(), refs.record["offset"].tolist(), strict=True):
            self._runs[shard, offset].data.result()

    def _start(self, shard: int, sizes: dict[int, int]) -> None:
        """Request samples of one shard, offset -> size, ascending: neighbours share runs of up to LONGEST_RUN bytes."""
        run: list[int] = []
        end = 0
        for start, size in [*sizes.items(), (-1, 0)]:
            if run and (start != end or end + size - run[0] > LONGEST_RUN):
                asked = _Run(run[0], self._pool.submit(self._get, shard, run[0], end))
                self._runs.update(((shard, offset), asked) for offset in run)
                run = []
            run.append(start)
            end = start + size

    def read(self, shard: int, offset: int, buffer: memoryview) -> memoryview:
        """A sample's bytes, a view of its run, which forgets the sample."""
        run = self._runs.pop((shard, offset))
        return memoryview(run.data.result())[offset - run.start : offset - run.start + len(buffer)]

    def fetch(self, shard: int, start: int, size: int) -> bytes:
        """Read bytes without a preceding `prepare`."""
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
