"""Splits: fixed for each film for ever, 80 / 10 / 10, and independent of the order of packing."""

from collections import Counter

import numpy as np
import pytest

from genre_dist.splits import order_key, split_of

GOLDEN_SPLITS = {
    1: "train",
    2: "train",
    11: "train",
    13: "train",
    238: "test",
    603: "test",
    27205: "train",
    10**12: "train",
}
GOLDEN_KEYS = {1: 13912161122895263420, 603: 17646043040072550275}
FILMS = range(1, 50_001)


@pytest.fixture(scope="module")
def splits() -> dict[int, str]:
    return {film: split_of(film) for film in FILMS}


def test_the_split_of_a_film_never_changes_between_versions() -> None:
    assert {film: split_of(film) for film in (1, 2, 11, 13, 238, 603, 27205, 10**12)} == GOLDEN_SPLITS


def test_the_place_of_a_film_never_changes_between_versions() -> None:
    assert {film: order_key(film) for film in (1, 603)} == GOLDEN_KEYS


@pytest.mark.parametrize(("split", "share"), [("train", 0.8), ("val", 0.1), ("test", 0.1)])
def test_splits_have_the_stated_shares(splits: dict[int, str], split: str, share: float) -> None:
    assert Counter(splits.values())[split] / len(FILMS) == pytest.approx(share, abs=0.006)  # 3 deviations at least


@pytest.mark.parametrize("part", range(4))
def test_a_stretch_of_ids_has_every_split_in_its_share(splits: dict[int, str], part: int) -> None:
    stretch = Counter(splits[film] for film in FILMS[part * 12_500 : (part + 1) * 12_500])
    assert stretch["val"] / 12_500 == pytest.approx(0.1, abs=0.012)
    assert stretch["test"] / 12_500 == pytest.approx(0.1, abs=0.012)


def test_every_stretch_of_the_order_of_packing_has_every_split_in_its_share(splits: dict[int, str]) -> None:
    ordered = sorted(FILMS, key=order_key)
    for part in range(5):
        stretch = Counter(splits[film] for film in ordered[part * 10_000 : (part + 1) * 10_000])
        assert stretch["train"] / 10_000 == pytest.approx(0.8, abs=0.016)


def test_the_order_of_packing_has_nothing_to_do_with_the_ids(splits: dict[int, str]) -> None:
    for split in ("train", "val", "test"):
        films = [film for film in FILMS if splits[film] == split]
        places = np.argsort([order_key(film) for film in films])
        assert abs(np.corrcoef(places, np.arange(len(films)))[0, 1]) < 0.05


def test_places_are_64_bit_numbers_and_all_different() -> None:
    keys = {order_key(film) for film in FILMS}
    assert len(keys) == len(FILMS)
    assert 0 <= min(keys) < 2**50
    assert max(keys) < 2**64


def test_a_film_is_known_by_its_number_whatever_its_type() -> None:
    assert split_of(np.int64(603)) == split_of(603)  # type: ignore[arg-type]
    assert order_key(np.int64(603)) == order_key(603)  # type: ignore[arg-type]
