"""What to ask remote shards for before it is needed: whole blocks of lanes, a few lanes in every step.

A lane reads its block of neighbouring samples in some order, and then the next block. Asking for a lane's next block
while this one is read makes one long request of it; taking the lanes in turn spreads the requests over the steps, so
that the line is always busy and memory holds at most two blocks a lane.
"""

from collections.abc import Callable, Iterator

import numpy as np

from genre_dist.stream.order import EpochOrder, Int64, Rows, Soon


class ReadAhead:
    """For each batch of a rank, in the order of training from a position on, what will be read soon."""

    def __init__(self, order: Callable[[int], EpochOrder], steps: int, position: int) -> None:
        self._order, self._steps, self._start = order, steps, position

    def soon(self, position: int, first: int, last: int) -> Soon:
        """What to ask for beside the samples that lanes [first, last) take at this position."""
        epoch, step = divmod(position, self._steps)
        order = self._order(epoch)
        begin = step // order.block * order.block
        end = min(begin + order.block, self._steps)
        lanes = np.arange(first, last, dtype=np.int64)
        # in the last step some lanes may have no sample, and no reader that could be told
        turn = lanes % (end - begin if end < self._steps else max(1, end - begin - 1))
        asking = lanes[turn <= step - begin if position == self._start else turn == step - begin]
        found = [order.block_rows(end, asking) if end < self._steps else self._order(epoch + 1).block_rows(0, asking)]
        if position == self._start:
            found += [(order.rows(s, first, last), order.lanes_at(s, first, last)) for s in range(step, end)]
        shard = np.concatenate([rows.shard for rows, _ in found])
        row = np.concatenate([rows.row for rows, _ in found])
        of = np.concatenate([lane for _, lane in found])
        return Soon(last - first, order.lanes_at(step, first, last) - first, shard, row, of - first)


def in_turn(batches: Iterator[Rows], samples: int) -> Iterator[Rows]:
    """Batches of up to `samples` read in stored order, each with the next one as what is read soon."""
    current = next(batches, None)
    while current is not None:
        following = next(batches, None)
        after = Rows(_NONE, _NONE) if following is None else following
        yield Rows(
            current.shard,
            current.row,
            Soon(samples, np.arange(len(current.row)), after.shard, after.row, np.arange(len(after.row))),
        )
        current = following


_NONE: Int64 = np.empty(0, np.int64)
