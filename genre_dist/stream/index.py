"""The index of a shard: where each sample lies and what it has, 24 bytes a sample, read by mmap.

It lies beside the shard as `<shard>.index.npy`, a plain NumPy array of `RECORD`, so several processes share its pages.
"""

from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream.manifest import Manifest, Shard
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
POSTER, OVERVIEW = 1, 2
FLAGS = {"poster": POSTER, "overview": OVERVIEW}


_REMEDY = "`genre-dist index` makes it again"


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npy")


def save_array(array: NDArray[Any], file: IO[bytes]) -> None:
    """Write what np.save writes; on a full disk np.save raises an error that does not say so."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class SplitIndex:
    """The rows of one split that have the wanted members, looked up shard by shard.

    Only the shards in use are open; the index of the others stays on disk.
    """

    def __init__(self, manifest: Manifest, split: str, members: tuple[str, ...]) -> None:
        self.folder = manifest.folder
        self.shards: tuple[Shard, ...] = manifest.shards_of(split)
        self.sizes: list[int] = [shard.count(members) for shard in self.shards]
        self._wanted = sum(FLAGS[member] for member in members)
        self._records = lru_cache(maxsize=256)(self._read)

    @property
    def samples(self) -> int:
        return sum(self.sizes)

    def records(self, rows: Rows) -> NDArray[np.void]:
        """Index records of samples, RECORD [n]."""
        found = np.empty(len(rows.row), RECORD)
        for number in np.unique(rows.shard):
            here = rows.shard == number
            found[here] = self._records(int(number))[rows.row[here]]
        return found

    def ids(self, rows: Rows) -> NDArray[np.int64]:
        """Film ids of samples, int64 [n]."""
        return self.records(rows)["id"]

    def _read(self, number: int) -> NDArray[np.void]:
        shard = self.shards[number]
        path = index_path(self.folder / shard.file)
        try:
            # as a plain array: NumPy's memmap costs microseconds at every access
            records = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: the shard's index cannot be read ({error}); {_REMEDY}") from None
        if records.dtype != RECORD or records.shape != (shard.samples,):
            raise ValueError(
                f"{path}: not an index of the manifest's {shard.samples} samples (found {list(records.shape)} of "
                f"{records.dtype}); {_REMEDY}"
            )
        wanted = (records["has"] & self._wanted) == self._wanted
        selected = records if wanted.all() else records[wanted]
        if len(selected) != self.sizes[number]:
            raise ValueError(
                f"{path}: {len(selected)} samples have the wanted members where the manifest counts "
                f"{self.sizes[number]}; {_REMEDY}"
            )
        return selected
