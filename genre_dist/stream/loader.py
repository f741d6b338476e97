"""The batches of one rank: for training from any position, for evaluation every sample once."""

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from genre_dist.schema import Schema, plural
from genre_dist.stream import ring
from genre_dist.stream.batch import Batch
from genre_dist.stream.order import VERSION, EpochOrder, evaluation_batches
from genre_dist.stream.reader import Reader
from genre_dist.stream.refs import SampleRefs, lane_refs, refs_in_stored_order
from genre_dist.stream.ring import Waiting, no_limit

if TYPE_CHECKING:  # the stream needs no torch
    from genre_dist.stream.device_feed import DeviceFeed


class TrainStream:
    """The training batches of one rank: for each step its micro-batches, from any position.

    A position is the number of steps since the start of training, which determines epoch and step.

    As an iterable it yields the remaining steps of the current epoch and has `state_dict` and `load_state_dict` as in
    torchdata's StatefulDataLoader: a state taken after a step continues with the next one. The state is the same on
    every rank and loads at any world size that divides the global batch. `batches` is the same stream without an end,
    for a trainer that tracks the position itself.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        global_batch: int,
        micro_batch: int,
        seed: int,
        world: int = 1,
        rank: int = 0,
        block: int = 32,
        last_batch: Literal["keep", "drop"] = "keep",
        by_length: float = 0.0,
        workers: int = 2,
        prefetch: int = 2,
        feed: "DeviceFeed | None" = None,
    ) -> None:
        self.reader, self._feed = reader, feed
        make = partial(
            EpochOrder,
            sizes=reader.index.sizes,
            global_batch=global_batch,
            seed=seed,
            block=block,
            last_batch=last_batch,
            by_length=by_length if reader.has_texts else 0.0,
            lengths=reader.lengths,
        )
        self.order = lru_cache(2)(lambda epoch: make(epoch=epoch))
        """The order of an epoch."""
        self.steps_per_epoch = self.order(0).steps
        if self.steps_per_epoch == 0:
            raise ValueError(_nothing_to_train_on(reader, global_batch))
        if global_batch % world:
            raise ValueError(f"{world} ranks cannot share a global batch of {global_batch} evenly")
        share = global_batch // world
        end = (rank + 1) * share
        self._lanes = [(first, min(first + micro_batch, end)) for first in range(rank * share, end, micro_batch)]
        self._micro_batch, self._workers, self._prefetch = micro_batch, workers, prefetch
        self.position = 0
        """Steps yielded so far by iteration."""
        self._running: Generator[list[Batch], None, None] | None = None

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[list[Batch]]:
        """The remaining steps of the current epoch; the workers stay for the next one."""
        if self._running is None:
            self._running = self.batches(self.position)
        for _ in range(self.steps_per_epoch - self.position % self.steps_per_epoch):
            step = next(self._running)
            self.position += 1
            yield step

    def close(self) -> None:
        """End the workers. Iterating again starts new ones at the same position."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def state_dict(self) -> dict[str, Any]:
        """The position and the identity of the order: all that resuming needs."""
        return {"position": self.position} | self.identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a state. Raises ValueError if the state belongs to another order of samples."""
        for key, value in self.identity().items():
            if state.get(key) != value:
                raise ValueError(f"the state was taken with {key}={state.get(key)}, this stream has {value}")
        self.close()
        self.position = int(state["position"])

    def identity(self) -> dict[str, Any]:
        """The settings that determine the samples of each step."""
        order = self.order(0)
        return {
            "order_version": VERSION,
            "data_fingerprint": self.reader.manifest.fingerprint,
            "members": list(self.reader.wanted),
            **({"missing": "learn"} if self.reader.any_of else {}),
            "seed": order.seed,
            "global_batch": order.global_batch,
            "block": order.block,
            "last_batch": order.last_batch,
            "by_length": order.by_length,
        }

    def step_ids(self, position: int) -> NDArray[np.int64]:
        """The sample ids of a step over all ranks, int64 [up to global batch]."""
        epoch, step = divmod(position, self.steps_per_epoch)
        return self.reader.index.ids(self.order(epoch).rows(step))

    def batches(self, position: int = 0, waiting: Waiting = no_limit) -> Generator[list[Batch], None, None]:
        """The rank's micro-batches of every step from a position on, valid until the next step is requested.

        While readers are slow, `waiting` is called about once a second with the seconds waited; it may raise.
        """
        micro = ring.batches(
            self.reader,
            self._refs(position),
            samples=self._micro_batch,
            workers=self._workers,
            prefetch=self._prefetch,
            hold=len(self._lanes),
            pin=self._feed.pin if self._feed else None,
            waiting=waiting,
        )
        try:
            while True:
                yield [self._feed.finish(next(micro)) if self._feed else next(micro) for _ in self._lanes]
        finally:
            micro.close()

    def _refs(self, start: int) -> Iterator[SampleRefs]:
        for position in count(start):
            epoch, step = divmod(position, self.steps_per_epoch)
            for first, last in self._lanes:
                yield lane_refs(self.reader.index, self.order, epoch, step, first, last, position == start)


def _nothing_to_train_on(reader: Reader, global_batch: int) -> str:
    folder, samples = reader.manifest.folder, reader.index.samples
    if samples == 0:
        declared: Schema | None = getattr(reader.manifest, "declared", None)  # tars of others have none
        sample, wanted = "sample" if declared is None else declared.sample, " and ".join(reader.wanted)
        return f"{folder}: no {sample} of the train split has {wanted}; pack more {plural(sample)}"
    return (
        f"{folder}: {samples} samples to train on do not fill one global batch of {global_batch}; lower "
        "data.global_batch or set data.last_batch to keep"
    )


def evaluation_stream(
    reader: Reader,
    *,
    batch: int,
    world: int = 1,
    rank: int = 0,
    workers: int = 2,
    prefetch: int = 2,
    feed: "DeviceFeed | None" = None,
    waiting: Waiting = no_limit,
) -> Generator[Batch, None, None]:
    """One rank's part of a split: the ranks together read every sample once, each the same number of batches.

    A batch is valid until the next one is requested.
    """
    refs = refs_in_stored_order(reader.index, evaluation_batches(reader.index.sizes, world, rank, batch), batch)
    pin = feed.pin if feed else None
    batches = ring.batches(reader, refs, samples=batch, workers=workers, prefetch=prefetch, pin=pin, waiting=waiting)
    with closing(batches):
        for read in batches:
            yield feed.finish(read) if feed else read
