"""The order of samples: a pure function of (shard sizes, seed, epoch, step).

Per epoch every shard is rotated by a random offset, the shards are permuted and laid end to end, the sequence is
rotated too and cut into G equal *lanes*, G being the global batch. Step t takes one sample of every lane: the t-th,
after a permutation inside small blocks of the lane. Nothing depends on ranks, workers or micro-batches: rank r of W
owns lanes rG/W to (r+1)G/W, so it reads a contiguous part of the sequence, and every step costs the same to compute.

Randomness is splitmix64 (Steele, Lea, Flood 2014, https://doi.org/10.1145/2660193.2660195) of the numbers that identify
a draw, so an order does not depend on a library's version and a checkpoint stores only (epoch, step).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

VERSION = 2
"""Version of the order: a run is continued only by the version that it began with."""

_SHARDS, _OFFSET, _BLOCK, _LENGTHS, _WITHIN = 1, 2, 3, 5, 6  # the purpose of a draw; images.py has 4


class Rows(NamedTuple):
    """Samples by shard number and row among the shard's selected samples, int64 [n] each."""

    shard: Int64
    row: Int64


def hash64(*parts: int | NDArray[np.generic]) -> NDArray[np.uint64]:
    """splitmix64 over the parts in turn: uint64 of their broadcast shape."""
    state = np.zeros((1,), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = state ^ (np.asarray(part).astype(np.int64).view(np.uint64))
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniforms(*parts: int | NDArray[np.generic]) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) of the parts' broadcast shape."""
    return (hash64(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    An epoch takes every sample once. If the global batch does not divide the number of samples, the remaining samples
    make a smaller last step, spread evenly over the lanes (`last_batch="keep"`), or each epoch leaves out other ones
    (`"drop"`).
    """

    sizes: Sequence[int]
    """Number of selected samples of each shard."""
    global_batch: int
    seed: int
    epoch: int
    block: int = 32
    last_batch: Literal["keep", "drop"] = "keep"
    by_length: float = 0.0
    """How similar in length the samples of a step are, from 0 (random) to 1: then every lane's block is sorted by
    length and a step takes the same position of all blocks. Needs `lengths`."""
    lengths: Callable[[Rows], Int64] | None = None
    """Lengths of samples, int64 [n], from the index."""

    @property
    def samples(self) -> int:
        return int(self._ends[-1]) if len(self.sizes) else 0

    @property
    def steps(self) -> int:
        """Steps of the epoch, the same for every rank."""
        return steps_per_epoch(self.samples, self.global_batch, self.last_batch)

    def rows(self, step: int, first_lane: int = 0, last_lane: int | None = None) -> Rows:
        """The samples that lanes [first_lane, last_lane) take at a step, in the order of the lanes.

        Every lane takes one sample, except in the last step of an epoch, where some lanes may have none.
        """
        assert 0 <= step < self.steps, f"step {step} of {self.steps}"
        last_lane = self.global_batch if last_lane is None else last_lane
        start, length = self._lanes(np.arange(first_lane, last_lane, dtype=np.int64))  # [lanes]
        first = step // self.block * self.block  # start of the step's block in every lane
        size = np.clip(length - first, 0, self.block)  # [lanes] samples of the lane in that block
        permutation = self._permutation(first_lane, last_lane, first, start, size)
        position = self._position_by_size(step, size)[size] if self.by_length else step - first
        picked = permutation[np.arange(len(permutation)), position]  # [lanes]
        has_one = step < length
        return self._locate((start + first + picked)[has_one])

    def lanes_at(self, step: int, first_lane: int, last_lane: int) -> Int64:
        """The lanes of a range that take a sample at a step, ascending."""
        lanes = np.arange(first_lane, last_lane, dtype=np.int64)
        return lanes[step < self._lanes(lanes)[1]]

    def block_rows(self, step: int, lanes: Int64) -> tuple[Rows, Int64]:
        """All samples of the block that begins at `step` in these lanes, lane by lane, and the lane of each."""
        start, length = self._lanes(lanes)  # [lanes]
        within = step + np.arange(self.block, dtype=np.int64)  # [block]
        there = within[None, :] < length[:, None]  # [lanes, block]
        of = np.broadcast_to(lanes[:, None], there.shape)[there]
        return self._locate((start[:, None] + within[None, :])[there]), of

    def _permutation(self, first_lane: int, last_lane: int, first: int, start: Int64, size: Int64) -> NDArray[np.int32]:
        """The samples of the block that begins at `first`, in the order in which each lane takes them: [lanes, block].

        All steps of a block share it, so the newest one of each range of lanes is cached.
        """
        block, permutation = self._kept.get((first_lane, last_lane), (-1, None))
        if permutation is None or block != first:
            lanes, within = np.arange(first_lane, last_lane), np.arange(self.block)
            keys = hash64(self.seed, self.epoch, _BLOCK, lanes[:, None], first, within[None, :])  # [lanes, block]
            keys[within[None, :] >= size[:, None]] = np.iinfo(np.uint64).max  # absent samples sort last
            shuffled = np.argsort(keys, axis=1, kind="stable")  # [lanes, block]
            if self.by_length:
                shuffled = self._sorted_by_length(shuffled, start + first, size)
            permutation = shuffled.astype(np.int32)
            self._kept[first_lane, last_lane] = first, permutation
        return permutation

    def _sorted_by_length(self, shuffled: Int64, start: Int64, size: Int64) -> Int64:
        """The samples of a block, int64 [lanes, block], absent ones last.

        `by_length` interpolates between each sample's position by length and its random position.
        """
        assert self.lengths is not None, "by_length needs lengths"
        lanes, within = len(shuffled), np.arange(self.block, dtype=np.int64)
        absent = within[None, :] >= size[:, None]  # [lanes, block]
        samples = start[:, None] + np.minimum(within[None, :], size[:, None] - 1)  # [lanes, block]
        lengths = self.lengths(self._locate(samples.ravel())).reshape(lanes, self.block)
        at_random = np.argsort(shuffled, axis=1)  # [lanes, block] position of each sample
        by_length = np.argsort(np.argsort(lengths * self.block + at_random, axis=1), axis=1)
        mixed = self.by_length * by_length + (1 - self.by_length) * at_random + absent * 4.0 * self.block
        return np.argsort(mixed, axis=1, kind="stable")

    def _position_by_size(self, step: int, size: Int64) -> Int64:
        """The position in its sorted block that a lane takes at a step, by the number of its samples in the block.

        All lanes share one random order of positions; a lane skips positions beyond its samples.
        """
        first, within = step // self.block * self.block, np.arange(self.block, dtype=np.int64)
        order = np.argsort(hash64(self.seed, self.epoch, _LENGTHS, first, within), kind="stable")  # [block]
        position = np.zeros(self.block + 1, np.int64)
        for n in np.unique(size[size > step - first]).tolist():  # lanes differ in size by one at most
            position[n] = order[order < n][step - first]
        return position

    def _lanes(self, lanes: Int64) -> tuple[Int64, Int64]:
        """Start and length of lanes in the sequence, int64 [lanes] each."""
        if self.last_batch == "drop":
            return lanes * self.steps, np.full_like(lanes, self.steps)
        start = lanes * self.samples // self.global_batch
        return start, (lanes + 1) * self.samples // self.global_batch - start

    def _locate(self, positions: Int64) -> Rows:
        """Positions in the epoch's sequence -> shards and rows.

        Without the rotation of shards, blocks would begin at the same rows in every epoch if a shard's size and a
        lane's length are in a simple ratio, and the same samples would share a block again.
        """
        rotated = (positions + self._offset) % self.samples
        slot = np.searchsorted(self._ends, rotated, side="right")
        shard = self._shards[slot]
        return Rows(shard, (rotated - self._ends[slot] + self._within[shard]) % self._sizes[shard])

    @cached_property
    def _kept(self) -> dict[tuple[int, int], tuple[int, NDArray[np.int32]]]:
        """Range of lanes -> a block and its permutation."""
        return {}

    @cached_property
    def _sizes(self) -> Int64:
        return np.asarray(self.sizes, np.int64)

    @cached_property
    def _offset(self) -> int:
        """Rotation of the sequence."""
        return int(hash64(self.seed, self.epoch, _OFFSET)[0] % np.uint64(self.samples))

    @cached_property
    def _within(self) -> Int64:
        """Rotation of each shard."""
        draws = hash64(self.seed, self.epoch, _WITHIN, np.arange(len(self.sizes)))
        return (draws % np.maximum(self._sizes, 1).view(np.uint64)).astype(np.int64)

    @cached_property
    def _shards(self) -> Int64:
        """Shard numbers in the order of this epoch."""
        return np.argsort(hash64(self.seed, self.epoch, _SHARDS, np.arange(len(self.sizes))), kind="stable")

    @cached_property
    def _ends(self) -> Int64:
        """End of each shard in the sequence, in the order of this epoch."""
        return np.cumsum(self._sizes[self._shards])


def steps_per_epoch(samples: int, global_batch: int, last_batch: Literal["keep", "drop"] = "keep") -> int:
    """Optimizer steps in one pass over the samples."""
    return samples // global_batch if last_batch == "drop" else -(-samples // global_batch)


def evaluation_batches(sizes: Sequence[int], world: int, rank: int, batch: int) -> Iterator[Rows]:
    """The batches of one rank's part of a split for evaluation, in stored order.

    The ranks together take every sample once. Every rank has the same number of batches; its last ones may be smaller
    or empty.
    """
    ends = np.cumsum(np.asarray(sizes, np.int64))
    samples = int(ends[-1]) if len(ends) else 0
    first, last = rank * samples // world, (rank + 1) * samples // world
    count = math.ceil(math.ceil(samples / world) / batch)
    for number in range(count):
        begin = min(first + number * batch, last)
        positions = np.arange(begin, min(begin + batch, last), dtype=np.int64)
        shard = np.searchsorted(ends, positions, side="right")
        yield Rows(shard, positions - ends[shard] + np.asarray(sizes, np.int64)[shard])
