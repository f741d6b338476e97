"""The index of a shard: offset and members of each sample, 24 bytes a sample, read by mmap.

The file `<shard>.index.npy` beside the shard is a plain NumPy array of `RECORD`; several processes share its pages.
"""

import io
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.schema import TMDB
from genre_dist.storage import AnyPath, inside, is_remote, read_bytes
from genre_dist.stream.order import Rows
from genre_dist.stream.source import is_too_many, most_open_files

if TYPE_CHECKING:
    from genre_dist.stream.foreign import Tars
    from genre_dist.stream.manifest_base import Manifest

RECORD = np.dtype(
    [
        ("id", "<i8"),  # the sample's id
        ("offset", "<i8"),  # of the sample's first header in the tar
        ("size", "<u4"),  # bytes from there to the end of the last member, padding included
        ("tokens", "<u2"),  # length of the text in tokens, at most 65,535
        ("has", "<u2"),  # bits of its fields, see `Schema.bit`
    ]
)
_OPAQUE = np.dtype((np.void, RECORD.itemsize))  # a copy by bytes takes half as long as one by fields

_REMEDY = "`genre-dist index` makes it again"


POSTER, OVERVIEW = TMDB.bit("poster"), TMDB.bit("overview")
FLAGS = {"poster": POSTER, "overview": OVERVIEW}
MOST_HELD = 1024  # shards
_BEGIN = b"\x93NUMPY\x01\x00"
LONGEST_HEAD = 1 << 16
"""Bytes before an array's numbers."""


def index_path(shard: AnyPath) -> AnyPath:
    return shard.with_suffix(".index.npy")


class DamagedArrayError(ValueError):
    """A file or member is no array in the format of np.save."""


def load_array(path: AnyPath, most: int | None = None) -> NDArray[Any]:
    """An array that np.save wrote: a local file is mapped, a remote one of at most `most` bytes is read.

    Raises OSError or ValueError if it is unreadable, DamagedArrayError, before allocating memory, if it is no array.
    """
    if not isinstance(path, Path):
        return array_in(read_bytes(path, most))
    with open(path, "rb") as file:
        dtype, shape = _array_head(file, path.stat().st_size)
        # a plain array: NumPy's memmap costs microseconds at every access
        return np.memmap(file, dtype, "r", file.tell(), shape).view(np.ndarray)


def array_in(data: bytes | memoryview) -> NDArray[Any]:
    """The array in bytes that np.save wrote, without a copy. Raises DamagedArrayError otherwise."""
    file = io.BytesIO(data[:LONGEST_HEAD])
    dtype, shape = _array_head(file, len(data))
    return np.ndarray(shape, dtype, data, file.tell())


def _array_head(file: IO[bytes], size: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Dtype and shape of an array file of `size` bytes; the file position ends behind the header."""
    try:
        begin = file.read(len(_BEGIN) + 2)
        text = file.read(int.from_bytes(begin[-2:], "little"))
        if begin[:-2] != _BEGIN or b"\\" in text:  # Python warns of unknown escapes
            raise ValueError("another beginning")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(begin[-2:] + text))
    except Exception as error:  # NumPy raises errors of many kinds for a damaged header
        raise DamagedArrayError(f"no array that np.save wrote: {printable(error)[:200]}") from None
    if dtype.hasobject or (by_columns and len(shape) > 1) or min(shape, default=0) < 0:
        raise DamagedArrayError(f"an array of another kind: {printable(dtype)[:200]}")
    if (expected := file.tell() + dtype.itemsize * math.prod(shape)) != size:
        raise DamagedArrayError(f"{size:,} bytes where its head gives {expected:,}")
    return dtype, shape


def save_array(array: NDArray[Any], file: IO[bytes]) -> None:
    """Write an array as np.save does, whose own error on a full disk does not name the cause."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def array_bytes(array: NDArray[Any]) -> bytes:
    """The bytes that np.save writes."""
    file = io.BytesIO()
    save_array(array, file)
    return file.getvalue()


class SplitIndex:
    """The samples of a split that have the wanted members, or with `any_of` one of them; loaded shard by shard.

    An LRU cache holds the records of MOST_HELD shards; remote ones take 24 bytes a sample, local ones are mapped. (A
    map counts as an open file, so a low limit of open files lowers their number.)
    """

    def __init__(self, manifest: "Manifest | Tars", split: str, members: tuple[str, ...], any_of: bool = False) -> None:
        self.folder, self.any_of = manifest.folder, any_of
        self._mask = partial(manifest.mask, fields=members)
        self.shards: Sequence[Any] = manifest.shards_of(split)
        self.sizes: list[int] = [manifest.count(shard, members, any_of) for shard in self.shards]
        self.paths: list[AnyPath] = [inside(self.folder, shard.file) for shard in self.shards]
        self.is_remote = any(map(is_remote, self.paths))
        self._most = MOST_HELD if is_remote(self.folder) else most_open_files(MOST_HELD)
        self._held: dict[int, NDArray[np.void]] = {}  # least recently used first

    @property
    def samples(self) -> int:
        return sum(self.sizes)

    def rows_of(self, number: int) -> Rows:
        """All samples of a shard."""
        size = self.sizes[number]
        return Rows(np.full(size, number), np.arange(size))

    def all_ids(self) -> NDArray[np.int64]:
        """The ids of all samples in stored order, int64 [samples]."""
        parts = [self.ids(self.rows_of(number)) for number in range(len(self.sizes))]
        return np.concatenate([*parts, np.empty(0, np.int64)])

    def records(self, rows: Rows) -> NDArray[np.void]:
        """Index records of samples, RECORD [n]."""
        records = np.empty(len(rows.row), _OPAQUE)
        numbers = np.unique(rows.shard).tolist()
        if is_remote(self.folder):
            self._fetch(numbers)
        for number in numbers:
            here = rows.shard == number
            records[here] = self._of(number).view(_OPAQUE)[rows.row[here]]
        return records.view(RECORD)

    def ids(self, rows: Rows) -> NDArray[np.int64]:
        """Ids of samples, int64 [n]."""
        return self.records(rows)["id"]

    def _fetch(self, numbers: list[int]) -> None:
        """Load the missing records of remote shards concurrently."""
        from concurrent.futures import ThreadPoolExecutor

        self._most = max(MOST_HELD, len(numbers))
        missing = [number for number in numbers if number not in self._held]
        if len(missing) > 1:
            with ThreadPoolExecutor(16) as pool:
                self._held.update(zip(missing, pool.map(self._read, missing), strict=True))

    def _of(self, number: int) -> NDArray[np.void]:
        """The records of a shard, through the cache."""
        records = self._held.pop(number, None)
        self._held[number] = records = self._read(number) if records is None else records
        while len(self._held) > self._most:
            del self._held[next(iter(self._held))]
        return records

    def _read(self, number: int) -> NDArray[np.void]:
        shard = self.shards[number]
        path = inside(self.folder, shard.index_file)
        try:
            records = load_array(path, LONGEST_HEAD + RECORD.itemsize * shard.samples)
        except FileNotFoundError:
            raise ValueError(f"{path}: the shard's index is missing; {_REMEDY}") from None
        except DamagedArrayError as error:
            raise ValueError(f"{path}: the shard's index is damaged ({error}); {_REMEDY}") from None
        except OSError as error:
            if is_too_many(error) and self._held:
                self._held.clear()  # other parts of the process hold open files
                return self._read(number)
            raise ValueError(f"{path}: the shard's index cannot be read ({error.strerror})") from None
        if records.dtype != RECORD or records.shape != (shard.samples,):
            raise ValueError(
                f"{path}: not an index of the manifest's {shard.samples} samples (found {list(records.shape)} of "
                f"{records.dtype}); {_REMEDY}"
            )
        if (outside := _not_inside(records, shard.bytes)) is not None:
            raise ValueError(
                f"{path}: sample {outside} would lie outside the shard's {shard.bytes:,} bytes, or in another one; "
                f"{_REMEDY}"
            )
        wanted = chosen(records["has"], self._mask(shard), self.any_of)
        selected = records if wanted.all() else records[wanted]
        if len(selected) != self.sizes[number]:
            raise ValueError(
                f"{path}: {len(selected)} samples have the wanted members where the manifest counts "
                f"{self.sizes[number]}; {_REMEDY}"
            )
        return selected


def chosen(has: NDArray[np.uint16], mask: int, any_of: bool) -> NDArray[np.bool_]:
    """Which samples have all bits of a mask, or with `any_of` one of them. has [n] -> bool [n]."""
    return (has & mask) > 0 if any_of else (has & mask) == mask


def _not_inside(records: NDArray[np.void], size: int) -> int | None:
    """The first sample that is not inside `size` bytes, or overlaps another one; None if all are valid.

    Identical records may occur several times.
    """
    start, length = records["offset"], records["size"].astype(np.int64)
    inside_it = (start >= 0) & (start <= size) & (length <= size - np.clip(start, 0, size))
    if not inside_it.all():
        return int(np.argmin(inside_it))
    if (start[1:] < start[:-1] + length[:-1]).any():  # an overlap, or records in another order
        order = np.lexsort((length, start))
        start, length = start[order], length[order]
        again = (start[1:] == start[:-1]) & (length[1:] == length[:-1])
        meets = (start[1:] < start[:-1] + length[:-1]) & ~again
        if meets.any():
            return int(order[1 + np.argmax(meets)])
    return None
