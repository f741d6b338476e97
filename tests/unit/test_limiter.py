"""The limiter: never more than the rate in a second, close to the rate over time, and pauses hold for everybody."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from acquire_server import most_in_a_second
from hypothesis import given
from hypothesis import strategies as st

from genre_dist.acquire.limiter import Limiter, retry_after_seconds


class Clock:
    """A clock that moves only when someone sleeps, and then a little further than asked, as clocks do."""

    def __init__(self, oversleep: float = 1e-4) -> None:
        self.now, self.oversleep = 1000.0, oversleep

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.oversleep


def limiter_at(rate: int, clock: Clock) -> Limiter:
    return Limiter(rate, clock.time, clock.sleep)


@given(
    rate=st.integers(1, 50),
    gaps=st.lists(st.floats(0, 0.2) | st.floats(0, 3), min_size=1, max_size=300),
    oversleep=st.floats(1e-6, 0.05),
)
def test_no_second_has_more_than_the_rate(rate: int, gaps: list[float], oversleep: float) -> None:
    clock = Clock(oversleep)
    limiter = limiter_at(rate, clock)
    sent = []
    for gap in gaps:
        clock.now += gap if gap > 0.1 else 0.0
        limiter.acquire()
        sent.append(clock.now)
    assert most_in_a_second(sent) <= rate


@pytest.mark.parametrize("rate", [1, 40, 400])
def test_the_rate_is_reached_within_three_per_cent(rate: int) -> None:
    clock = Clock(oversleep=2e-4)
    limiter = limiter_at(rate, clock)
    for _ in range(20 * rate + 1):
        limiter.acquire()
    assert 0.97 * rate <= 20 * rate / (clock.now - 1000.0) <= rate


def test_a_pause_holds_for_everybody_and_the_longest_counts() -> None:
    clock = Clock()
    limiter = limiter_at(40, clock)
    limiter.acquire()
    limiter.pause(30)
    limiter.pause(5)
    limiter.acquire()
    assert clock.now >= 1030


def test_no_rate_means_no_waiting_but_pauses_hold() -> None:
    clock = Clock()
    limiter = limiter_at(0, clock)
    for _ in range(1000):
        limiter.acquire()
    assert clock.now == 1000.0
    limiter.pause(2)
    limiter.acquire()
    assert clock.now >= 1002


def test_threads_share_one_rate() -> None:
    limiter, sent = Limiter(200), []

    def ask() -> None:
        for _ in range(30):
            limiter.acquire()
            sent.append(time.monotonic())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given_out = list(limiter.last_second)
    assert len(sent) == 240
    assert given_out[-1] - given_out[0] >= 199 * 0.99 / 200
    assert most_in_a_second(given_out) <= 200


def test_retry_after_in_seconds_and_as_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after_seconds("7") == 7
    assert retry_after_seconds(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert retry_after_seconds(format_datetime(now - timedelta(seconds=90), usegmt=True), now) == 0


@pytest.mark.parametrize("header", [None, "", "soon", "-3", "1.5"])
def test_a_retry_after_that_says_nothing_is_none(header: str | None) -> None:
    assert retry_after_seconds(header) is None
