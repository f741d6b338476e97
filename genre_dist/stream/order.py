"""Which sample each step trains on: a pure function of (shard sizes, seed, epoch, step).

Per epoch the shards are permuted and laid end to end, the sequence is turned by a random offset and cut into G equal
*lanes*, G being the global batch. Step t takes one sample of every lane: the t-th, after a permutation inside small
blocks of the lane. Nothing depends on ranks, workers or micro-batches: rank r of W owns lanes rG/W to (r+1)G/W, so it
reads a contiguous piece of the sequence, and any step is found at the same cost as any other.

Randomness is splitmix64 (Steele, Lea, Flood 2014, https://doi.org/10.1145/2660193.2660195) of the numbers that identify
a draw, so an order never changes with a library's version and nothing has to be saved but (epoch, step).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

_SHARDS, _OFFSET, _BLOCK = 1, 2, 3  # which draw a hash is for


class Rows(NamedTuple):
    """Samples by place: shard number and row among the shard's selected samples, int64 [n] each."""

    shard: Int64
    row: Int64


def hash64(*parts: int | NDArray[np.generic]) -> NDArray[np.uint64]:
    """splitmix64 over the parts in turn: uint64, broadcast to their common shape."""
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
    """Uniform draws in [0, 1), one for each element of the parts' common shape."""
    return (hash64(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    Every sample is taken exactly once. When the global batch does not divide the number of samples, the left-over
    samples make a smaller last step, spread evenly over the lanes (`last_batch="keep"`), or stay out, others in each
    epoch (`"drop"`).
    """

    sizes: Sequence[int]
    """Selected samples of each shard."""
    global_batch: int
    seed: int
    epoch: int
    block: int = 32
    last_batch: Literal["keep", "drop"] = "keep"

    @property
    def samples(self) -> int:
        return int(self._ends[-1]) if len(self.sizes) else 0

    @property
    def steps(self) -> int:
        """Steps of the epoch, the same for every rank."""
        return steps_per_epoch(self.samples, self.global_batch, self.last_batch)

    def rows(self, step: int, first_lane: int = 0, last_lane: int | None = None) -> Rows:
        """The samples that lanes [first_lane, last_lane) take at a step, in the order of the lanes.

        One sample a lane, but for the last step of an epoch, where some lanes may have none.
        """
        assert 0 <= step < self.steps, f"step {step} of {self.steps}"
        lanes = np.arange(first_lane, self.global_batch if last_lane is None else last_lane, dtype=np.int64)  # [lanes]
        start, length = self._lanes(lanes)  # [lanes]
        has_one = step < length
        lanes, start, length = lanes[has_one], start[has_one], length[has_one]
        first = step // self.block * self.block  # where the step's block begins in every lane
        size = np.minimum(self.block, length - first)  # [lanes] samples of the lane in that block
        within = np.arange(self.block, dtype=np.int64)  # [block]
        keys = hash64(self.seed, self.epoch, _BLOCK, lanes[:, None], first, within[None, :])  # [lanes, block]
        keys[within[None, :] >= size[:, None]] = np.iinfo(np.uint64).max  # absent places sort last
        picked = np.argsort(keys, axis=1, kind="stable")[:, step - first]  # [lanes]
        return self._locate(start + first + picked)

    def _lanes(self, lanes: Int64) -> tuple[Int64, Int64]:
        """Start and length of lanes in the sequence, int64 [lanes] each."""
        if self.last_batch == "drop":
            return lanes * self.steps, np.full_like(lanes, self.steps)
        start = lanes * self.samples // self.global_batch
        return start, (lanes + 1) * self.samples // self.global_batch - start

    def _locate(self, positions: Int64) -> Rows:
        """Places of the epoch's sequence -> shards and rows."""
        offset = int(hash64(self.seed, self.epoch, _OFFSET)[0] % np.uint64(self.samples))
        turned = (positions + offset) % self.samples
        slot = np.searchsorted(self._ends, turned, side="right")
        shard = self._shards[slot]
        return Rows(shard, turned - self._ends[slot] + np.asarray(self.sizes, np.int64)[shard])

    @cached_property
    def _shards(self) -> Int64:
        """Shard numbers in the order of this epoch."""
        return np.argsort(hash64(self.seed, self.epoch, _SHARDS, np.arange(len(self.sizes))), kind="stable")

    @cached_property
    def _ends(self) -> Int64:
        """Where each shard ends in the sequence, in the order of this epoch."""
        return np.cumsum(np.asarray(self.sizes, np.int64)[self._shards])


def steps_per_epoch(samples: int, global_batch: int, last_batch: Literal["keep", "drop"] = "keep") -> int:
    """Optimizer steps in one pass over the samples."""
    return samples // global_batch if last_batch == "drop" else -(-samples // global_batch)


def evaluation_batches(sizes: Sequence[int], world: int, rank: int, batch: int) -> Iterator[Rows]:
    """The batches in which one rank evaluates its part of a split, in stored order, every sample once over all ranks.

    Every rank gets the same number of batches; the last ones of a rank may be smaller or empty.
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
