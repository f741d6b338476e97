"""A bounded folder of blocks of remote files, shared by all ranks and workers of a node and kept between runs.

Every block is a file that appears whole, by a rename. The bytes used, and who fetches which block, are settled under
`flock`, which the kernel takes back from a process that dies, so a kill at any moment leaves nothing that has to be
mended; a block half written by a killed process goes with the next clearing up. A block is named by its file's checksum
and number, so other shards at the same address are never mixed up with it.
"""

import fcntl
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from genre_dist.atomic import atomic_file

BLOCK_BYTES = 1 << 20
KEEP = 0.9
"""When the cache is full, what was not used for longest goes until this share of the limit is left."""


LOCKS = 512
"""So many blocks can be fetched at a time by all processes of a node."""


def block_cache(folder: str | None, gigabytes: float) -> "BlockCache | None":
    """The cache in a folder, None without one."""
    return None if folder is None else BlockCache(Path(folder), int(gigabytes * 1e9))


class BlockCache(NamedTuple):
    """The folder and how much it may hold."""

    folder: Path
    limit: int
    """Bytes."""

    def read(self, key: str, start: int, end: int, size: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """Bytes start to end of a file of `size` bytes known as `key`; what is missing is got by fetch(start, end)."""
        first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        blocks = []
        for number in range(first, last + 1):
            begin = number * BLOCK_BYTES
            blocks.append(self._block(key, number, begin, min(begin + BLOCK_BYTES, size), fetch))
        return b"".join(blocks)[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]

    def _block(self, key: str, number: int, start: int, end: int, fetch: Callable[[int, int], bytes]) -> bytes:
        path = self.folder / "blocks" / key / f"{number:06d}"
        data = _kept(path, end - start)
        if data is None:
            with self._locked(f"{zlib.crc32(f'{key} {number}'.encode()) % LOCKS:03d}"):  # or two would fetch it
                data = _kept(path, end - start) or self._add(path, fetch(start, end))
        return data

    def _add(self, path: Path, data: bytes) -> bytes:
        """Keep a block, after making room for it."""
        with self._locked("used") as file:
            used = int(file.read() or -1)
            if used < 0 or used + len(data) > self.limit:
                used = self._clear_up(len(data))
            file.seek(0)
            file.truncate()
            file.write(str(used + len(data)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, sync=False) as file:
            file.write(data)
        return data

    @contextmanager
    def _locked(self, name: str) -> Iterator[IO[str]]:
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        with open(self.folder / "locks" / name, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released with the file, however the process ends
            file.seek(0)
            yield file

    def _clear_up(self, size: int) -> int:
        """Remove the oldest blocks, if it must be; returns the bytes that are left."""
        blocks = []
        for path in (self.folder / "blocks").glob("*/*"):
            with suppress(FileNotFoundError):
                about = path.stat()
                blocks.append((about.st_mtime_ns, about.st_size, path))
        used = sum(block[1] for block in blocks)
        if used + size <= self.limit:
            return used
        for _, bytes_freed, path in sorted(blocks):
            if used + size <= KEEP * self.limit:
                break
            path.unlink(missing_ok=True)
            used -= bytes_freed
        return used


def _kept(path: Path, size: int) -> bytes | None:
    """A whole block, None if it is not there; another process may clear it up at any moment."""
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        os.utime(path)
        return data if len(data) == size else None
    return None
