"""Batches of a split for one rank, read ahead by a few threads, with a fixed number of them in flight.

The threads decode while the trainer computes: JPEG decoding releases the GIL. Whatever the number of threads, the
batches come in the same order with the same bytes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream.order import EpochOrder, Rows, evaluation_batches
from genre_dist.stream.reader import Batch, ShardReader

T = TypeVar("T")
R = TypeVar("R")


class TrainStream:
    """The training batches of one rank: for each step its micro-batches, from any position.

    A position is a number of steps since the start of training; epoch and step within it follow. Iterating never ends:
    the trainer decides how far to go.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        global_batch: int,
        micro_batch: int,
        seed: int,
        world: int = 1,
        rank: int = 0,
        block: int = 32,
        last_batch: Literal["keep", "drop"] = "keep",
        workers: int = 2,
        prefetch: int = 2,
    ) -> None:
        self.reader = reader
        self._make = partial(
            EpochOrder,
            sizes=reader.index.sizes,
            global_batch=global_batch,
            seed=seed,
            block=block,
            last_batch=last_batch,
        )
        self._current = self._make(epoch=0)
        self.steps_per_epoch = self._current.steps
        if self.steps_per_epoch == 0:
            raise ValueError(_nothing_to_train_on(reader, global_batch))
        if global_batch % world:
            raise ValueError(f"{world} ranks cannot share a global batch of {global_batch} evenly")
        share = global_batch // world
        end = (rank + 1) * share
        self._lanes = [(first, min(first + micro_batch, end)) for first in range(rank * share, end, micro_batch)]
        self._workers, self._prefetch = workers, prefetch

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        if self._current.epoch != epoch:
            self._current = self._make(epoch=epoch)
        return self._current

    def step_ids(self, position: int) -> NDArray[np.int64]:
        """The film ids of a whole step over all ranks, int64 [up to global batch]."""
        epoch, step = divmod(position, self.steps_per_epoch)
        return self.reader.index.ids(self.order(epoch).rows(step))

    def batches(self, position: int = 0) -> Generator[list[Batch], None, None]:
        """From a position on, for every step the rank's micro-batches."""
        micro = read_ahead(self._places(position), self.reader.read, self._workers, self._prefetch)
        try:
            while True:
                yield [next(micro) for _ in self._lanes]
        finally:
            micro.close()

    def _places(self, position: int) -> Iterator[Rows]:
        while True:
            epoch, step = divmod(position, self.steps_per_epoch)
            order = self.order(epoch)
            for first, last in self._lanes:
                yield order.rows(step, first, last)
            position += 1


def _nothing_to_train_on(reader: ShardReader, global_batch: int) -> str:
    folder, samples = reader.manifest.folder, reader.index.samples
    if samples == 0:
        return f"{folder}: no film of the train split has {' and '.join(reader.wanted)}; pack more films"
    return (
        f"{folder}: {samples} samples to train on do not fill one global batch of {global_batch}; lower "
        "data.global_batch or set data.last_batch to keep"
    )


def evaluation_stream(
    reader: ShardReader, *, batch: int, world: int = 1, rank: int = 0, workers: int = 2, prefetch: int = 2
) -> Generator[Batch, None, None]:
    """One rank's part of a split, every sample once over all ranks, the same number of batches on each."""
    places = evaluation_batches(reader.index.sizes, world, rank, batch)
    return read_ahead(places, reader.read, workers, prefetch)


def read_ahead(tasks: Iterable[T], work: Callable[[T], R], workers: int, ahead: int) -> Generator[R, None, None]:
    """The results of `work` in the order of the tasks, computed by threads, at most `ahead` of them waiting.

    With workers=0 each is computed when it is asked for. An exception comes out where its result would have.
    """
    if workers == 0:
        yield from map(work, tasks)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    waiting: deque[Future[R]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
