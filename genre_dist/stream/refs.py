"""Sample refs: shards and index records of samples, with those to prefetch; small messages that a pipe carries.

A lane reads its block of neighbouring samples in some order, and then the next block. The prefetch of a lane's next
block is one long request; a different group of lanes prefetches in every step, which spreads the requests over the
steps: the network stays busy and memory holds at most two blocks a lane.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream.index import RECORD, SplitIndex
from genre_dist.stream.order import EpochOrder, Int64, Rows


class Prefetch(NamedTuple):
    """Samples of remote shards that the same lanes will read soon after a batch."""

    lanes: int
    """Lanes of the batch."""
    lane: Int64  # [n] lane of each sample of the batch, ascending
    shard: Int64  # [m]
    record: NDArray[np.void]  # RECORD [m]
    of: Int64  # [m] the lane that will read it

    def between(self, first: int, last: int) -> "Prefetch":
        """The part that lanes [first, last) will read."""
        mine = (self.of >= first) & (self.of < last)
        return Prefetch(self.lanes, self.lane, self.shard[mine], self.record[mine], self.of[mine])


class SampleRefs(NamedTuple):
    """Samples by shard and index record."""

    shard: Int64  # [n]
    record: NDArray[np.void]  # RECORD [n]
    prefetch: Prefetch | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as bytes: NumPy's pickling of a structured dtype takes several times as long."""
        return _received, (self.shard.tobytes(), self.record.tobytes(), self.prefetch)

    def parts(self, number: int) -> "list[tuple[int, SampleRefs]]":
        """Contiguous parts, one a reader, each with the number of its first sample; some may be empty.

        With a prefetch a lane is always in the same part, since that reader holds its bytes.
        """
        ahead = self.prefetch
        if ahead is None:
            edges = [part * len(self.shard) // number for part in range(number + 1)]
            return [(a, SampleRefs(self.shard[a:b], self.record[a:b])) for a, b in pairwise(edges)]
        borders = [part * ahead.lanes // number for part in range(number + 1)]
        edges = np.searchsorted(ahead.lane, borders).tolist()
        return [
            (a, SampleRefs(self.shard[a:b], self.record[a:b], ahead.between(first, last)))
            for (a, b), (first, last) in zip(pairwise(edges), pairwise(borders), strict=True)
        ]


def _received(shard: bytes, record: bytes, prefetch: Prefetch | None) -> SampleRefs:
    return SampleRefs(np.frombuffer(shard, np.int64), np.frombuffer(record, RECORD), prefetch)


def look_up(index: SplitIndex, rows: Rows) -> SampleRefs:
    """The refs of samples."""
    return SampleRefs(rows.shard, index.records(rows))


def lane_refs(
    index: SplitIndex,
    order: Callable[[int], EpochOrder],
    epoch: int,
    step: int,
    first: int,
    last: int,
    is_first: bool,
) -> SampleRefs:
    """The refs of lanes [first, last) at a step, and for remote shards the prefetch of a group of these lanes.

    The first step of a launch also prefetches the rest of its block, and for the groups of the block's earlier steps.
    """
    now = order(epoch)
    rows = now.rows(step, first, last)
    if not index.is_remote:
        return look_up(index, rows)
    begin = step // now.block * now.block
    end = min(begin + now.block, now.steps)
    lanes = np.arange(first, last, dtype=np.int64)
    # in an epoch's last step some lanes have no sample, so no reader to prefetch for them
    group = lanes % (end - begin if end < now.steps else max(1, end - begin - 1))
    asking = lanes[group <= step - begin if is_first else group == step - begin]
    soon = [now.block_rows(end, asking) if end < now.steps else order(epoch + 1).block_rows(0, asking)]
    if is_first:
        soon += [(now.rows(later, first, last), now.lanes_at(later, first, last)) for later in range(step, end)]
    of = np.concatenate([lanes_of for _, lanes_of in soon]) - first
    after = Rows(*map(np.concatenate, zip(*(rows for rows, _ in soon), strict=True)))
    return _with_prefetch(index, rows, last - first, now.lanes_at(step, first, last) - first, after, of)


def refs_in_stored_order(index: SplitIndex, batches: Iterable[Rows], samples: int) -> Iterator[SampleRefs]:
    """The refs of batches of up to `samples` in stored order; with remote shards each prefetches the next."""
    if not index.is_remote:
        yield from (look_up(index, rows) for rows in batches)
        return
    for rows, after in pairwise(chain(batches, [Rows(*np.empty((2, 0), np.int64))])):
        yield _with_prefetch(index, rows, samples, np.arange(len(rows.row)), after, np.arange(len(after.row)))


def _with_prefetch(index: SplitIndex, rows: Rows, lanes: int, lane: Int64, soon: Rows, of: Int64) -> SampleRefs:
    n = len(rows.row)  # one lookup for both: missing remote indexes load concurrently
    record = index.records(Rows(np.append(rows.shard, soon.shard), np.append(rows.row, soon.row)))
    return SampleRefs(rows.shard, record[:n], Prefetch(lanes, lane, soon.shard, record[n:], of))
