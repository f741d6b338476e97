"""The index of a shard: where each sample lies and what it has, 24 bytes a sample, read by mmap.

It lies beside the shard as `<shard>.index.npy`, a plain NumPy array of `RECORD`, so several processes share its pages.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genre_dist.storage import Place, inside, is_remote, read_bytes
from genre_dist.stream.order import Rows

RECORD = np.dtype(
    [
        ("id", "<i8"),  # the film's id
        ("offset", "<i8"),  # byte in the tar where the sample's first header begins
        ("size", "<u4"),  # bytes from there to the end of its last member, padding included
        ("tokens", "<u2"),  # length of its text in tokens, at most 65,535
        ("has", "<u2"),  # which members it has: POSTER | OVERVIEW
    ]
)
_WHOLE = np.dtype((np.void, RECORD.itemsize))  # copied as it is; field by field takes twice as long

_REMEDY = "`genre-dist index` makes it again"


POSTER, OVERVIEW = 1, 2
FLAGS = {"poster": POSTER, "overview": OVERVIEW}
MOST_HELD = 1024  # shards


def index_path(shard: Place) -> Place:
    return shard.with_suffix(".index.npy")


def load_array(path: Place) -> NDArray[Any]:
    """An array that np.save wrote: mapped if it is local, read if it is remote. Raises as np.load does."""
    if isinstance(path, Path):
        # as a plain array: NumPy's memmap costs microseconds at every access
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)


def save_array(array: NDArray[Any], file: IO[bytes]) -> None:
    """Write what np.save writes; on a full disk np.save raises an error that does not say so."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class IndexedShard(Protocol):
    """What an index has to know of a shard."""

    @property
    def file(self) -> str: ...
    @property
    def index_file(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def identity(self) -> str:
        """A name for the shard's bytes, wherever they lie."""

    def count(self, members: tuple[str, ...]) -> int: ...
    def mask(self, members: tuple[str, ...]) -> int: ...


class Listing(Protocol):
    """A manifest: where its shards are named from, and which belong to a split."""

    @property
    def folder(self) -> Place: ...
    @property
    def fingerprint(self) -> str: ...
    def shards_of(self, split: str) -> Sequence[IndexedShard]: ...


class SplitIndex:
    """The rows of some shards that have the wanted members, looked up shard by shard.

    Only the shards in use are held, the newest MOST_HELD; local ones are mapped, remote ones are 24 bytes a sample.
    """

    def __init__(self, manifest: Listing, split: str, members: tuple[str, ...]) -> None:
        self.folder, self.members = manifest.folder, members
        self.shards = manifest.shards_of(split)
        self.sizes: list[int] = [shard.count(members) for shard in self.shards]
        self.paths: list[Place] = [inside(self.folder, shard.file) for shard in self.shards]
        self.is_remote = any(map(is_remote, self.paths))
        self._held: dict[int, NDArray[np.void]] = {}  # the longest unused first

    @property
    def samples(self) -> int:
        return sum(self.sizes)

    def records(self, rows: Rows) -> NDArray[np.void]:
        """Index records of samples, RECORD [n]."""
        found = np.empty(len(rows.row), _WHOLE)
        numbers = np.unique(rows.shard).tolist()
        self._hold(numbers)
        for number in numbers:
            here = rows.shard == number
            found[here] = self._held[number].view(_WHOLE)[rows.row[here]]
        return found.view(RECORD)

    def ids(self, rows: Rows) -> NDArray[np.int64]:
        """Film ids of samples, int64 [n]."""
        return self.records(rows)["id"]

    def _hold(self, numbers: list[int]) -> None:
        """Have the records of these shards at hand; remote ones come together, not one after the other."""
        missing = [number for number in numbers if number not in self._held]
        if is_remote(self.folder) and len(missing) > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(16) as pool:
                self._held.update(zip(missing, pool.map(self._read, missing), strict=True))
        for number in numbers:
            self._held[number] = self._held.pop(number) if number in self._held else self._read(number)
        while len(self._held) > max(MOST_HELD, len(numbers)):
            del self._held[next(iter(self._held))]

    def _read(self, number: int) -> NDArray[np.void]:
        shard = self.shards[number]
        path = inside(self.folder, shard.index_file)
        try:
            records = load_array(path)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: the shard's index cannot be read ({error}); {_REMEDY}") from None
        if records.dtype != RECORD or records.shape != (shard.samples,):
            raise ValueError(
                f"{path}: not an index of the manifest's {shard.samples} samples (found {list(records.shape)} of "
                f"{records.dtype}); {_REMEDY}"
            )
        mask = shard.mask(self.members)
        wanted = (records["has"] & mask) == mask
        selected = records if wanted.all() else records[wanted]
        if len(selected) != self.sizes[number]:
            raise ValueError(
                f"{path}: {len(selected)} samples have the wanted members where the manifest counts "
                f"{self.sizes[number]}; {_REMEDY}"
            )
        return selected
