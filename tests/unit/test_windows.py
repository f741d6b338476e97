"""Windows of release dates: halving loses no day, and years are read as people write them."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genre_dist.tmdb.windows import Window, parse_years, spans


@given(st.dates(date(1870, 1, 1), date(2040, 1, 1)), st.integers(1, 4000))
def test_halves_meet_and_cover_the_window(first: date, days: int) -> None:
    window = Window(first, first + timedelta(days=days))
    early, late = window.halves()
    assert (early.first, late.last) == (window.first, window.last)
    assert early.first <= early.last < late.first <= late.last
    assert late.first - early.last == timedelta(days=1)


def test_years_and_ranges() -> None:
    assert parse_years("1999") == [1999]
    assert parse_years("1990-1992, 1980,1991") == [1980, 1990, 1991, 1992]


@pytest.mark.parametrize("text", ["", "90", "1999-1990", "1990-", "1990:1999", "0000", "nineteen"])
def test_other_years_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--years takes years and ranges"):
        parse_years(text)


def test_spans_join_years_that_follow_each_other() -> None:
    assert [str(window) for window in spans([1980, 1990, 1991])] == ["1980-01-01..1980-12-31", "1990-01-01..1991-12-31"]
