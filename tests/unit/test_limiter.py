"""The limiter: never more than the rate in a second, close to the rate over time, and pauses hold for everybody."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from heapq import heappop, heappush

import numpy as np
import pytest
from acquire_server import most_in_a_second
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.tmdb.limiter import MOST_SECONDS, Limiter, retry_after_seconds


class World:
    """A clock that moves only when someone sleeps, and a little further than asked; answers arrive meanwhile."""

    def __init__(self, oversleep: float = 1e-4) -> None:
        self.now, self.oversleep = 1000.0, oversleep
        self.coming: list[tuple[float, int]] = []  # when the answer to a turn arrives

    def time(self) -> float:
        return self.now

    def limiter(self, rate: int) -> Limiter:
        self.limits = Limiter(rate, self.time, self.sleep)
        return self.limits

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds + self.oversleep
        while self.coming and self.coming[0][0] <= end:
            self.now, turn = heappop(self.coming)
            self.limits.answered(turn)
        self.now = end

    def ask(self, there: float, back: float) -> float:
        """Send a request as soon as it may; returns when the server gets it."""
        turn = self.limits.acquire()
        heappush(self.coming, (self.now + there + back, turn))
        return self.now + there


DELAY = st.floats(0, 0.01) | st.floats(0, 0.3) | st.floats(0, 3)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    rate=st.integers(1, 5) | st.integers(1, 50),
    fastest=st.floats(0, 0.2),
    journeys=st.lists(st.tuples(DELAY, DELAY, st.just(0.0) | st.floats(0, 3)), min_size=20, max_size=60),
    oversleep=st.floats(1e-6, 0.05),
)
def test_the_server_sees_no_second_with_more_than_the_rate_however_long_requests_and_answers_take(
    rate: int, fastest: float, journeys: list[tuple[float, float, float]], oversleep: float
) -> None:
    world = World(oversleep)
    world.limiter(rate)
    arrived = [world.ask(fastest / 2, fastest / 2)]
    for there, back, idle in journeys:
        world.sleep(idle)
        arrived.append(world.ask(fastest / 2 + there, fastest / 2 + back))
    assert most_in_a_second(sorted(arrived)) <= rate


@pytest.mark.parametrize("rate", [1, 40, 400])
@pytest.mark.parametrize("fastest", [0.001, 0.1])
def test_the_rate_is_reached_within_three_per_cent(rate: int, fastest: float) -> None:
    world = World(oversleep=2e-4)
    world.limiter(rate)
    for number in range(40 * rate + 1):
        world.ask(fastest / 2, fastest / 2 + (number % 3) * 0.005)  # 5 ms of jitter on the mean
    assert 0.97 * rate <= 40 * rate / (world.now - 1000.0) <= rate


def test_requests_are_spread_over_the_second() -> None:
    world = World()
    world.limiter(40)
    arrived = [world.ask(0.001, 0.001) for _ in range(200)]
    assert max(np.diff(arrived)) < 2 / 40


def test_a_request_that_fails_or_hangs_keeps_its_place_until_it_ends() -> None:
    world = World()
    world.limiter(2)
    world.ask(0.0, 30.0)
    world.ask(0.0, 0.0)
    world.ask(0.0, 20.0)
    assert world.now < 1002
    world.ask(0.0, 0.0)
    assert 1020 < world.now < 1030


def test_a_pause_holds_for_everybody_and_the_longest_counts() -> None:
    world = World()
    limiter = world.limiter(40)
    limiter.acquire()
    assert [limiter.pause(seconds) for seconds in (30, 5, 35)] == pytest.approx([30, 0, 5])  # how much longer
    limiter.acquire()
    assert world.now >= 1035


def test_no_rate_means_no_waiting_but_pauses_hold() -> None:
    world = World()
    limiter = world.limiter(0)
    for _ in range(1000):
        limiter.acquire()
    assert world.now == 1000.0
    limiter.pause(2)
    limiter.acquire()
    assert world.now >= 1002


def test_threads_share_one_rate() -> None:
    limiter, sent = Limiter(200), []

    def ask() -> None:
        for _ in range(30):
            turn = limiter.acquire()
            sent.append(time.monotonic())
            limiter.answered(turn)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(sent), limiter.requests, limiter.under_way) == (240, 240, {})
    assert most_in_a_second(sorted(sent)) <= 200


def test_retry_after_in_seconds_and_as_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after_seconds("7") == 7
    assert retry_after_seconds(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert retry_after_seconds(format_datetime(now - timedelta(seconds=90), usegmt=True), now) == 0
    for beyond in ("9" * 400, format_datetime(datetime(9999, 12, 31, tzinfo=UTC), usegmt=True)):
        assert retry_after_seconds(beyond, now) == MOST_SECONDS


@pytest.mark.parametrize("header", [None, "", "soon", "-3", "1.5", "Fri, 99 Dec 2026 25:00:00 GMT"])
def test_a_retry_after_that_says_nothing_is_none(header: str | None) -> None:
    assert retry_after_seconds(header) is None
