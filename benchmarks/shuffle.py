"""How well an epoch is shuffled: this project's lanes against a full permutation and the field's ways.

    python benchmarks/shuffle.py [--quick] [--json FILE]

48,000 samples in shards of 1,000, global batches of 256, pure simulation. Three figures, each over that of a full
permutation: pairs of a batch that were together in the epoch before (1: they meet by chance only); how far samples that
are neighbours in their shard lie apart in the epoch; and the spread over batches of a label's share, for shards in hash
order as packing makes them, and for the hard case that every shard holds one of eight labels only.

webdataset: shards permuted, then its buffer of 5,000. py1e, the default of mosaicml-streaming: shards permuted, each
sample then moved at random within a window; its default window of 262,144 samples would hold this whole data set, so
10,000 stand for data that is larger than the window.
"""

import itertools
import random
from collections.abc import Callable
from functools import partial

import numpy as np
from common import Row, measured, options, report
from numpy.typing import NDArray

from genre_dist.stream.order import EpochOrder

SHARDS, SHARD, BATCH, LABELS = 48, 1_000, 256, 8
SAMPLES = SHARDS * SHARD
Epoch = NDArray[np.int64]  # [samples] sample numbers in the order of training


def main() -> None:
    arguments = options(__doc__ or "")
    report(rows(arguments.quick), arguments.json)


def rows(quick: bool) -> list[Row]:
    epochs = 3 if quick else 9
    ways: dict[str, Callable[[int], Epoch]] = {
        "genre_dist, lanes and blocks of 32": partial(lanes, block=32),
        "genre_dist, blocks of 64": partial(lanes, block=64),
        "webdataset, buffer of 5,000": partial(buffered, size=5_000),
        "mosaicml py1e, window of 10,000": partial(windowed, size=10_000),
    }
    whole = [permutation(epoch) for epoch in range(epochs)]
    made = []
    for name, way in ways.items():
        ours = [way(epoch) for epoch in range(epochs)]
        for claim, figure in FIGURES.items():
            values = [figure(a) / figure(b) for a, b in zip(_pairs(ours), _pairs(whole), strict=True)]
            row = measured(f"{name}: {claim}, over a full permutation", values, "ratio")
            if name.startswith("genre_dist, lanes"):
                holds = row.value >= 0.95 if "apart" in claim else row.value <= 1.05
                row = Row(**vars(row) | {"goal": ">= 0.95" if "apart" in claim else "<= 1.05", "holds": holds})
            made.append(row)
    return made


def _pairs(epochs: list[Epoch]) -> list[tuple[Epoch, Epoch]]:
    return list(itertools.pairwise(epochs))


# ---- the ways


def permutation(epoch: int) -> Epoch:
    return np.random.default_rng(1_000 + epoch).permutation(SAMPLES)


def lanes(epoch: int, block: int) -> Epoch:
    order = EpochOrder([SHARD] * SHARDS, BATCH, seed=4, epoch=epoch, block=block)
    return np.concatenate([rows.shard * SHARD + rows.row for rows in map(order.rows, range(order.steps))])


def _shards_permuted(epoch: int) -> Epoch:
    shards = np.random.default_rng(epoch).permutation(SHARDS)
    return (shards[:, None] * SHARD + np.arange(SHARD)).ravel()


def buffered(epoch: int, size: int) -> Epoch:
    """A buffer that is filled, then gives one of its samples at random for every new one."""
    draw, stream = random.Random(epoch), _shards_permuted(epoch).tolist()
    buffer, taken = stream[:size], []
    for sample in stream[size:]:
        place = draw.randrange(size)
        taken.append(buffer[place])
        buffer[place] = sample
    draw.shuffle(buffer)
    return np.array(taken + buffer)


def windowed(epoch: int, size: int) -> Epoch:
    """Every sample moved by up to half a window less its shard, then sorted by where it came to lie."""
    stream, draws = _shards_permuted(epoch), np.random.default_rng(epoch)
    reach = (size - SHARD) / 2
    return stream[np.argsort(np.arange(SAMPLES) + draws.uniform(-reach, reach, SAMPLES))]


# ---- the figures, of an epoch and the one before


def together_again(epochs: tuple[Epoch, Epoch]) -> float:
    """Share of the pairs of a batch that were in one batch in the epoch before."""
    before = np.empty(SAMPLES, np.int64)
    before[epochs[0]] = np.arange(SAMPLES) // BATCH
    together = pairs = 0
    for batch in np.split(before[epochs[1]], range(BATCH, SAMPLES, BATCH)):
        _, counts = np.unique(batch, return_counts=True)
        together += int((counts * (counts - 1) // 2).sum())
        pairs += len(batch) * (len(batch) - 1) // 2
    return together / pairs


def apart(epochs: tuple[Epoch, Epoch]) -> float:
    """Mean distance in the epoch of samples that are neighbours in their shard, in steps."""
    step = np.empty(SAMPLES, np.int64)
    step[epochs[1]] = np.arange(SAMPLES) // BATCH
    return float(np.abs(np.diff(step.reshape(SHARDS, SHARD), axis=1)).mean())


def label_spread(epochs: tuple[Epoch, Epoch], in_shards: bool) -> float:
    """Standard deviation over batches of the share of one label, the mean over the labels."""
    labels = (
        np.arange(SAMPLES) // SHARD % LABELS if in_shards else np.random.default_rng(7).integers(0, LABELS, SAMPLES)
    )
    whole = labels[epochs[1]][: SAMPLES // BATCH * BATCH].reshape(-1, BATCH)  # [steps, batch]
    shares = np.stack([(whole == label).mean(axis=1) for label in range(LABELS)])  # [labels, steps]
    return float(shares.std(axis=1).mean())


FIGURES: dict[str, Callable[[tuple[Epoch, Epoch]], float]] = {
    "pairs together again": together_again,
    "neighbours apart": apart,
    "spread of labels, hash order": partial(label_spread, in_shards=False),
    "spread of labels, one label a shard": partial(label_spread, in_shards=True),
}

if __name__ == "__main__":
    main()
