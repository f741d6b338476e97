"""Samples looked up in the index: all that reading them takes, small enough to be sent to a worker."""

from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream.index import RECORD, SplitIndex
from genre_dist.stream.order import Int64, Rows


class Copied(Protocol):
    """An event after which a copy is done; torch.cuda.Event is one."""

    def synchronize(self) -> None: ...


class Seconds(NamedTuple):
    """Where the time for a batch went, summed over the processes that read it."""

    read: float = 0.0
    """Reading and parsing."""
    decode: float = 0.0
    idle: float = 0.0
    """Waiting for a slot to fill: the readers are ahead of the trainer."""


class Ahead(NamedTuple):
    """Samples of remote shards that the readers of the same lanes will read soon after those of a batch."""

    lanes: int
    """Lanes of the batch."""
    lane: Int64  # [n] lane of each sample of the batch, ascending
    shard: Int64  # [m]
    record: NDArray[np.void]  # RECORD [m]
    of: Int64  # [m] the lane that will read it

    def between(self, first: int, last: int) -> "Ahead":
        """What lanes [first, last) will read."""
        mine = (self.of >= first) & (self.of < last)
        return Ahead(self.lanes, self.lane, self.shard[mine], self.record[mine], self.of[mine])


class Found(NamedTuple):
    """Samples looked up in the index."""

    shard: Int64  # [n]
    record: NDArray[np.void]  # RECORD [n]
    ahead: Ahead | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent as bytes: with a structured dtype NumPy's own pickling takes several times as long."""
        return _received, (self.shard.tobytes(), self.record.tobytes(), self.ahead)

    def parts(self, number: int) -> "list[tuple[int, Found]]":
        """Cut into so many pieces of neighbours, each with the number of its first sample; some may be empty.

        With samples to be read ahead a lane is always in the same piece: its bytes lie with that reader.
        """
        ahead = self.ahead
        if ahead is None:
            edges = [part * len(self.shard) // number for part in range(number + 1)]
            return [(a, Found(self.shard[a:b], self.record[a:b])) for a, b in pairwise(edges)]
        borders = [part * ahead.lanes // number for part in range(number + 1)]
        edges = np.searchsorted(ahead.lane, borders).tolist()
        return [
            (a, Found(self.shard[a:b], self.record[a:b], ahead.between(first, last)))
            for (a, b), (first, last) in zip(pairwise(edges), pairwise(borders), strict=True)
        ]


def _received(shard: bytes, record: bytes, ahead: Ahead | None) -> Found:
    return Found(np.frombuffer(shard, np.int64), np.frombuffer(record, RECORD), ahead)


def find(index: SplitIndex, rows: Rows) -> Found:
    """Look samples up in the index."""
    soon = rows.soon
    if soon is None:
        return Found(rows.shard, index.records(rows))
    n = len(rows.row)  # both in one go: remote indexes that are missing come together
    shard, row = np.append(rows.shard, soon.shard), np.append(rows.row, soon.row)
    record = index.records(Rows(shard, row))
    return Found(rows.shard, record[:n], Ahead(soon.lanes, soon.lane, soon.shard, record[n:], soon.of))
