"""The stream as a loader: an iterable with a length whose state continues anywhere, at any world size."""

from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from genre_dist.stream import ShardReader, TrainStream, load_manifest

G = 12


def make_stream(shards: Path, world: int = 1, rank: int = 0, workers: int = 0, seed: int = 5) -> TrainStream:
    reader = ShardReader(load_manifest(shards), "train", ("overview",), 32)
    return TrainStream(reader, global_batch=G, micro_batch=3, seed=seed, world=world, rank=rank, workers=workers)


def ids(stream: TrainStream, epochs: int) -> Iterator[list[int]]:
    """Film ids of every step left in this and the following epochs."""
    for _ in range(epochs):
        for micro_batches in stream:
            yield np.concatenate([batch.ids for batch in micro_batches]).tolist()


def test_iterating_is_one_epoch_of_that_length_and_epochs_differ(sample_shards: Path) -> None:
    stream = make_stream(sample_shards)
    first, second = list(ids(stream, 1)), list(ids(stream, 1))
    assert len(first) == len(second) == len(stream)
    assert sorted([*chain(*first)]) == sorted([*chain(*second)])
    assert first != second


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("taken", [0, 3, 99])
def test_a_state_continues_the_very_same_sequence_on_any_number_of_ranks(
    sample_shards: Path, workers: int, world: int, taken: int
) -> None:
    whole = list(ids(make_stream(sample_shards), 3))
    with closing(make_stream(sample_shards, workers=workers)) as stopped:
        steps = ids(stopped, 3)
        before = [next(steps) for _ in range(min(taken, len(stopped) + 2))]
        state = stopped.state_dict()
    streams = [make_stream(sample_shards, world, rank) for rank in range(world)]
    for stream in streams:
        stream.load_state_dict(state)
    epochs_left = 3 - state["position"] // len(streams[0])
    after = [[*chain(*parts)] for parts in zip(*(ids(stream, epochs_left) for stream in streams), strict=True)]
    assert before + after == whole


def test_a_state_taken_at_the_end_of_an_epoch_begins_the_next(sample_shards: Path) -> None:
    stream = make_stream(sample_shards)
    list(ids(stream, 1))
    again = make_stream(sample_shards)
    again.load_state_dict(stream.state_dict())
    assert list(ids(again, 1)) == list(ids(stream, 1))


def test_the_state_of_another_order_is_refused(sample_shards: Path) -> None:
    state = make_stream(sample_shards, seed=6).state_dict()
    with pytest.raises(ValueError, match="seed=6, this stream has 5"):
        make_stream(sample_shards).load_state_dict(state)


def test_a_state_of_a_version_that_took_samples_in_another_order_is_refused(sample_shards: Path) -> None:
    stream = make_stream(sample_shards)
    state = stream.state_dict()
    with pytest.raises(ValueError, match=f"order_version=1, this stream has {state['order_version']}"):
        stream.load_state_dict(state | {"order_version": 1})
    with pytest.raises(ValueError, match="order_version=None"):  # what states had before they told it
        stream.load_state_dict({key: state[key] for key in state.keys() - {"order_version"}})
