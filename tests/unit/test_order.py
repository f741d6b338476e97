"""The order: every film once an epoch, the same whatever the number of ranks, found from anywhere."""

from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.stream.order import EpochOrder, Rows, evaluation_batches, hash64, steps_per_epoch, uniforms

Sample = tuple[int, int]  # shard and row

GOLDEN_STEPS: list[list[Sample]] = [
    [(0, 3), (0, 6), (3, 8), (3, 11)],
    [(0, 1), (0, 8), (3, 6), (3, 2)],
    [(0, 4), (3, 3), (3, 9), (3, 0)],
    [(0, 2), (0, 7), (3, 7), (3, 1)],
    [(0, 5), (3, 4), (3, 10), (0, 0)],
    [(3, 5), (2, 0)],
]
GOLDEN_STEPS_DROP: list[list[Sample]] = [
    [(0, 3), (0, 6), (3, 7), (3, 10)],
    [(0, 1), (0, 8), (3, 5), (3, 1)],
    [(0, 4), (3, 3), (3, 8), (3, 11)],
    [(0, 2), (0, 7), (3, 6), (3, 0)],
    [(0, 5), (3, 4), (3, 9), (3, 2)],
]
GOLDEN_HASH = [15020427595393229491]

law = settings(deadline=None, max_examples=60)
some_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)  # empty shards and shards of one, too


@st.composite
def orders(draw: st.DrawFn, last_batch: Literal["keep", "drop"] | None = None) -> EpochOrder:
    sizes = draw(some_sizes)
    last = last_batch or draw(st.sampled_from(["keep", "drop"]))
    most = 50 if last == "keep" else max(1, sum(sizes))  # keep: global batches larger than the data set are allowed
    return EpochOrder(
        sizes,
        global_batch=draw(st.integers(1, most)),
        seed=draw(st.integers(0, 2**31)),
        epoch=draw(st.integers(0, 1000)),
        block=draw(st.integers(1, 70)),
        last_batch=last,
        by_length=draw(st.sampled_from([0.0, 0.5, 1.0])),
        lengths=some_lengths,
    )


def some_lengths(rows: Rows) -> np.ndarray:
    """A text length for every sample, from 0 to 119."""
    return (hash64(rows.shard, rows.row) % np.uint64(120)).astype(np.int64)


def listed(rows: Rows) -> list[Sample]:
    return list(zip(rows.shard.tolist(), rows.row.tolist(), strict=True))


def taken(order: EpochOrder) -> list[Sample]:
    """The whole epoch, step by step."""
    return [sample for step in range(order.steps) for sample in listed(order.rows(step))]


def everything(sizes: list[int]) -> list[Sample]:
    return [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]


def divisors(number: int) -> list[int]:
    return [world for world in range(1, number + 1) if number % world == 0]


# ---- what an epoch holds ---------------------------------------------------------------------------------------------


@law
@given(orders("keep"))
def test_every_sample_is_taken_exactly_once_an_epoch(order: EpochOrder) -> None:
    assert sorted(taken(order)) == everything(list(order.sizes))


@law
@given(orders("drop"))
def test_drop_takes_whole_batches_of_different_samples_and_leaves_less_than_a_batch(order: EpochOrder) -> None:
    samples = taken(order)
    assert all(len(order.rows(step).row) == order.global_batch for step in range(order.steps))
    assert len(set(samples)) == len(samples) == order.steps * order.global_batch
    assert set(samples) <= set(everything(list(order.sizes)))
    assert 0 <= order.samples - len(samples) < order.global_batch


@law
@given(orders())
def test_no_two_lanes_share_a_sample(order: EpochOrder) -> None:
    lanes = [
        {sample for step in range(order.steps) for sample in listed(order.rows(step, lane, lane + 1))}
        for lane in range(order.global_batch)
    ]
    assert sum(map(len, lanes)) == len(set().union(*lanes))


@law
@given(orders("keep"))
def test_all_steps_but_the_last_are_full(order: EpochOrder) -> None:
    sizes = [len(order.rows(step).row) for step in range(order.steps)]
    assert sizes[:-1] == [order.global_batch] * (order.steps - 1)
    assert 1 <= sizes[-1] <= order.global_batch


@pytest.mark.parametrize(("samples", "keep", "drop"), [(0, 0, 0), (3, 1, 0), (8, 1, 1), (9, 2, 1), (16, 2, 2)])
def test_the_number_of_steps_is_the_tail_rule(samples: int, keep: int, drop: int) -> None:
    assert (steps_per_epoch(samples, 8, "keep"), steps_per_epoch(samples, 8, "drop")) == (keep, drop)
    assert EpochOrder([samples], 8, seed=0, epoch=0).steps == keep
    assert EpochOrder([samples], 8, seed=0, epoch=0, last_batch="drop").steps == drop


def test_fewer_samples_than_the_global_batch_make_one_step_that_has_them_all() -> None:
    order = EpochOrder([2, 0, 3], global_batch=64, seed=1, epoch=4)
    assert order.steps == 1
    assert sorted(listed(order.rows(0))) == everything([2, 0, 3])


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_no_samples_make_no_steps(sizes: list[int]) -> None:
    assert EpochOrder(sizes, 4, seed=0, epoch=0).steps == 0


def test_drop_leaves_out_other_samples_in_another_epoch() -> None:
    left_out = [
        frozenset(everything([50, 53]))
        - set(taken(EpochOrder([50, 53], global_batch=20, seed=0, epoch=epoch, last_batch="drop")))
        for epoch in range(4)
    ]
    assert len(set(left_out)) == 4


# ---- ranks, micro-batches, seeking -----------------------------------------------------------------------------------


@law
@given(orders(), st.data())
def test_the_ranks_parts_side_by_side_are_the_whole_step_for_every_world_that_divides_it(
    order: EpochOrder, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, order.steps - 1))
    whole = listed(order.rows(step))
    for world in divisors(order.global_batch):
        share = order.global_batch // world
        parts = [listed(order.rows(step, rank * share, (rank + 1) * share)) for rank in range(world)]
        assert [sample for part in parts for sample in part] == whole


@pytest.mark.parametrize("world", range(1, 65))
def test_worlds_of_1_to_64_ranks_train_on_the_same_step(world: int) -> None:
    order = EpochOrder([700, 1, 0, 1300], global_batch=2 * world, seed=5, epoch=1)
    for step in (0, order.steps - 1):
        parts = [listed(order.rows(step, 2 * rank, 2 * rank + 2)) for rank in range(world)]
        assert [sample for part in parts for sample in part] == listed(order.rows(step))


@pytest.mark.parametrize("world", [1, 2, 3, 8, 24])
@pytest.mark.parametrize("sizes", [[1], [23], [25], [1] * 40, [0, 7, 0], [2000]], ids=str)
def test_one_shard_shards_of_one_film_and_fewer_films_than_lanes_are_shared_like_any_others(
    sizes: list[int], world: int
) -> None:
    order, share = EpochOrder(sizes, global_batch=24, seed=3, epoch=1), 24 // world
    taken_by_ranks = [
        sample
        for step in range(order.steps)
        for rank in range(world)
        for sample in listed(order.rows(step, rank * share, (rank + 1) * share))
    ]
    assert sorted(taken_by_ranks) == everything(sizes)
    assert taken_by_ranks == taken(order)
    assert order.steps == -(-sum(sizes) // 24)  # for every rank, also for one that has no film in it


@law
@given(orders(), st.data())
def test_what_was_asked_before_does_not_matter(order: EpochOrder, data: st.DataObject) -> None:
    """The order keeps what neighbouring steps share."""
    for _ in range(4):
        step = data.draw(st.integers(0, order.steps - 1))
        first = data.draw(st.integers(0, order.global_batch - 1))
        last = data.draw(st.integers(first, order.global_batch))
        assert listed(order.rows(step, first, last)) == listed(replace(order).rows(step, first, last))


@law
@given(orders(), st.data())
def test_cutting_a_ranks_part_into_micro_batches_changes_nothing(order: EpochOrder, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, order.steps - 1))
    micro = data.draw(st.integers(1, order.global_batch))
    parts = [
        listed(order.rows(step, first, min(first + micro, order.global_batch)))
        for first in range(0, order.global_batch, micro)
    ]
    assert [sample for part in parts for sample in part] == listed(order.rows(step))


@pytest.mark.slow
@law
@given(orders("keep"))
def test_the_last_steps_samples_are_spread_evenly_over_the_ranks(order: EpochOrder) -> None:
    for world in divisors(order.global_batch):
        share = order.global_batch // world
        counts = [len(order.rows(order.steps - 1, rank * share, (rank + 1) * share).row) for rank in range(world)]
        assert max(counts) - min(counts) <= 1


@law
@given(orders(), st.data())
def test_a_step_found_at_once_is_the_step_reached_by_iterating(order: EpochOrder, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, order.steps - 1))
    iterated = [listed(order.rows(number)) for number in range(step + 1)][-1]
    fresh = replace(order)
    assert listed(fresh.rows(step)) == iterated


# ---- shuffling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 8}, {"block": 16}])
def test_another_epoch_seed_or_block_is_another_order(change: dict[str, int]) -> None:
    options = {"seed": 7, "epoch": 0, "block": 32}
    one = EpochOrder([100, 100, 100], 16, **options)
    other = EpochOrder([100, 100, 100], 16, **(options | change))
    assert taken(one) != taken(other)


def test_the_order_never_changes_between_versions() -> None:
    keep = EpochOrder([9, 0, 1, 12], global_batch=4, seed=11, epoch=2, block=4)
    assert [listed(keep.rows(step)) for step in range(keep.steps)] == GOLDEN_STEPS
    drop = replace(keep, last_batch="drop")
    assert [listed(drop.rows(step)) for step in range(drop.steps)] == GOLDEN_STEPS_DROP
    assert hash64(1, 2, 3).tolist() == GOLDEN_HASH


def repeats_against_a_permutation(block: int, shards: int) -> float:
    """Pairs of a batch that were together in the epoch before, relative to what a full permutation would give."""
    shard, batch = 1_000, 256
    samples = shards * shard
    before, together, pairs = np.empty(samples, np.int64), 0, 0
    for epoch in (0, 1, 2):
        order = EpochOrder([shard] * shards, batch, seed=4, epoch=epoch, block=block)
        steps = [rows.shard * shard + rows.row for rows in map(order.rows, range(order.steps))]  # [batch] each
        if epoch:
            for ids in steps:
                _, counts = np.unique(before[ids], return_counts=True)
                together += int((counts * (counts - 1) // 2).sum())
                pairs += len(ids) * (len(ids) - 1) // 2
        for step, ids in enumerate(steps):
            before[ids] = step
    return together / pairs / (batch / samples)


@pytest.mark.parametrize("shards", [24, 48], ids=lambda n: f"{n}_shards")  # 48: 16 lanes are as long as 3 shards
def test_blocks_of_32_shuffle_about_as_well_as_a_full_permutation(shards: int) -> None:
    assert repeats_against_a_permutation(32, shards) < 1.05


def test_without_blocks_the_same_films_meet_again_and_again() -> None:
    assert repeats_against_a_permutation(1, 24) > 2


# ---- evaluation ------------------------------------------------------------------------------------------------------


@law
@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 12), st.integers(1, 20))
def test_evaluation_takes_every_sample_once_over_all_ranks_in_equally_many_batches(
    sizes: list[int], world: int, batch: int
) -> None:
    ranks = [list(evaluation_batches(sizes, world, rank, batch)) for rank in range(world)]
    assert [sample for places in ranks for rows in places for sample in listed(rows)] == everything(sizes)
    assert len({len(places) for places in ranks}) == 1
    assert all(len(rows.row) <= batch for places in ranks for rows in places)


# ---- random numbers --------------------------------------------------------------------------------------------------


def test_the_hash_looks_at_every_part_and_at_their_order() -> None:
    parts = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0), (0, 0), (0,), (-1, 0, 0)]
    assert len({int(hash64(*part)[0]) for part in parts}) == len(parts)


def test_the_hash_takes_arrays_and_numbers_alike() -> None:
    numbers = np.arange(5)
    assert hash64(3, numbers, 9).tolist() == [int(hash64(3, int(number), 9)[0]) for number in numbers]


def test_neighbouring_numbers_get_hashes_that_share_half_their_bits() -> None:
    bits = np.unpackbits(hash64(0, np.arange(4000)).view(np.uint8)).reshape(4000, 64)
    assert (bits[1:] != bits[:-1]).mean() == pytest.approx(0.5, abs=0.01)
    assert bits.mean(axis=0) == pytest.approx(np.full(64, 0.5), abs=0.04)


def test_uniform_draws_are_uniform_and_independent_of_each_other() -> None:
    draws = uniforms(1, np.arange(20_000)[:, None], np.arange(3)[None, :])  # [20000, 3]
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in draws.T])
    assert counts == pytest.approx(np.full((3, 20), 1000), abs=170)  # 5.5 standard deviations
    correlations = np.corrcoef(draws.T)
    assert all(abs(correlations[a, b]) < 0.03 for a, b in combinations(range(3), 2))


# --- similar lengths


def padding(order: EpochOrder) -> float:
    """Tokens of an epoch padded to each step's longest, over tokens unpadded."""
    padded = real = 0
    for step in range(order.steps):
        lengths = some_lengths(order.rows(step))
        padded, real = padded + len(lengths) * int(lengths.max()), real + int(lengths.sum())
    return padded / real


def test_steps_of_similar_lengths_pad_less_the_more_length_counts() -> None:
    sizes = [500] * 20
    at = [
        padding(EpochOrder(sizes, 64, 0, 0, by_length=strength, lengths=some_lengths)) for strength in (0, 0.5, 0.8, 1)
    ]
    assert at == sorted(at, reverse=True)
    assert at[0] > 1.9
    assert at[-1] < 1.45


def test_the_order_of_lengths_is_no_order_of_time() -> None:
    order = EpochOrder([500] * 20, 64, 0, 0, by_length=1.0, lengths=some_lengths)
    means = [some_lengths(order.rows(step)).mean() for step in range(order.steps)]
    assert abs(np.corrcoef(np.arange(len(means)) % 32, means)[0, 1]) < 0.5
