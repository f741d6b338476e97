"""A bounded folder of blocks of remote files, shared by all ranks and workers of a node and kept between runs.

Every block is a file that is renamed into place and ends in a checksum. `flock` guards the count of used bytes and the
fetching of each block; the kernel releases the locks of a process that dies, so a kill at any moment needs no repair;
the next eviction removes a block that a killed process left unfinished. A block's name is its file's checksum and its
number, so other shards at the same address never share it.

The cache is optional: if it cannot be read or written, blocks come from the remote storage, and one line says so.
"""

import errno
import fcntl
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

from genre_dist.atomic import atomic_file

BLOCK_BYTES = 1 << 20
CHECKSUM_BYTES = 4
KEEP = 0.9
"""A full cache evicts the least recently used blocks down to this share of its limit."""
SPARE_BYTES = 64 << 20
"""Disk space that the cache leaves free."""


LOCKS = 512
"""Blocks that all processes of a node can fetch at a time."""


def block_cache(folder: str | None, gigabytes: float) -> "BlockCache | None":
    """The cache in a folder; None without a folder."""
    return None if folder is None else BlockCache(Path(folder), int(gigabytes * 1e9))


class BlockCache(NamedTuple):
    """The folder and its limit."""

    folder: Path
    limit: int
    """Bytes."""

    def read(self, key: str, start: int, end: int, size: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """Bytes start to end of the file `key` of `size` bytes; fetch(start, end) supplies missing blocks."""
        first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        blocks = []
        for number in range(first, last + 1):
            begin = number * BLOCK_BYTES
            blocks.append(self._block(key, number, begin, min(begin + BLOCK_BYTES, size), fetch))
        return b"".join(blocks)[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]

    def _block(self, key: str, number: int, start: int, end: int, fetch: Callable[[int, int], bytes]) -> bytes:
        path = self.folder / "blocks" / key / f"{number:06d}"
        if (data := _kept(path, end - start)) is not None:
            return data
        try:
            lock = self._lock(f"{zlib.crc32(f'{key} {number}'.encode()) % LOCKS:03d}")  # one process fetches it
        except OSError as error:
            _say_once(f"{self.folder}: the cache cannot be used ({error.strerror}); reading on without it")
            return fetch(start, end)
        with lock:
            if (data := _kept(path, end - start)) is None:
                data = fetch(start, end)
                try:
                    self._add(path, data)
                except OSError as error:
                    _say_once(f"{self.folder}: the cache takes no more blocks ({error.strerror}); reading on")
        return data

    def _add(self, path: Path, data: bytes) -> None:
        """Store a block, after eviction if needed. Raises OSError if that fails."""
        size = len(data) + CHECKSUM_BYTES
        with self._lock("used") as file:
            used = _count(file.read(32))
            free = shutil.disk_usage(self.folder).free - SPARE_BYTES
            if used is None or used + size > self.limit or size > free:
                used = self._evict(size, free)
            _write(file, used + size)  # before the block: a kill in between must not leave an uncounted block
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path, sync=False) as block:
                block.write(data + _checksum(path, data))
        except OSError:
            with self._lock("used") as file:
                _write(file, max(0, (_count(file.read(32)) or size) - size))
            raise

    def _lock(self, name: str) -> IO[str]:
        """A file that is locked until it is closed. Raises OSError if it cannot be made."""
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        file = open(self.folder / "locks" / name, "a+", errors="replace")  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # released with the file, however the process ends
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _evict(self, size: int, free: int) -> int:
        """Remove the oldest blocks if needed; returns the used bytes. Raises OSError if space stays short."""
        blocks = []
        for path in (self.folder / "blocks").glob("*/*"):
            with suppress(FileNotFoundError):
                about = path.stat()
                blocks.append((about.st_mtime_ns, about.st_size, path))
        used = sum(block[1] for block in blocks)
        limit = min(self.limit, used + free)
        if limit < self.limit:
            _say_once(f"{self.folder}: the disk has less room than the cache's {self.limit / 1e9:g} GB; it keeps less")
        for _, bytes_freed, path in sorted(blocks) if used + size > limit else ():
            if used + size <= KEEP * limit:
                break
            path.unlink(missing_ok=True)
            used -= bytes_freed
        if used + size > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return used


def _kept(path: Path, size: int) -> bytes | None:
    """A block, None if it is missing or damaged; another process may evict it at any moment."""
    with suppress(OSError):
        with open(path, "rb") as file:
            written = file.read(size + CHECKSUM_BYTES + 1)
        data = written[:size]
        if written[size:] == _checksum(path, data):
            with suppress(OSError):  # a read-only cache
                os.utime(path)
            return data
    return None


def _checksum(path: Path, data: bytes) -> bytes:
    """Checksum of a block's bytes and name."""
    named = zlib.crc32(f"{path.parent.name} {path.name}".encode())
    return zlib.crc32(data, named).to_bytes(CHECKSUM_BYTES)


def _count(text: str) -> int | None:
    """The stored number of used bytes; None if it is unreadable."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _write(file: IO[str], count: int) -> None:
    file.seek(0)
    file.truncate()
    file.write(str(count))
    file.flush()


@cache
def _say_once(line: str) -> None:
    """Print a line once, if this process reads for the first rank of its machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)
