"""Rate limit of a fetch: one rate for all threads, and the pauses that the server asks for."""

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

WINDOW_SECONDS = 1.005  # a little more than the second that the server counts: clocks differ
CATCH_UP_SECONDS = 0.1  # delay that later requests may make up for
MOST_SECONDS = 366 * 86400.0  # a longer Retry-After counts as this
CHECK_SECONDS = 0.01  # interval of checks while `rate` requests are unanswered


class Limiter:
    """One rate for all threads: `rate` requests a second, evenly, and never more in any second; 0 for no limit.

    The server counts a request when it arrives, at some time between sending and the answer's first bytes. So a
    request counts from when it may be sent until a second after its answer, less the time of the fastest answer so
    far, as no request has been under way for less. However long threads and packets are delayed, the server then sees
    no more than `rate` requests in a second, unless a request outruns all before it by more than WINDOW_SECONDS
    allow. The mean rate is lower by the time that answers take longer than the fastest one.

    A pause that the server asked for holds for all threads, with or without a rate.
    """

    def __init__(
        self, rate: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.clock, self.sleep, self.rate = clock, sleep, rate
        self.interval = WINDOW_SECONDS / rate if rate else 0.0
        self.next_at = self.paused_until = clock()
        self.requests = self.answers = 0
        self.under_way: dict[int, float] = {}  # request -> when it was let go
        self.answered_at: deque[float] = deque(maxlen=rate)  # the last `rate` answers, ascending
        self.fastest = float("inf")  # seconds
        self._next, self._counting = threading.Lock(), threading.Lock()

    def acquire(self) -> int:
        """Wait until the next request may be sent; returns its number, the argument of `answered`."""
        with self._next:
            while (wait := self._ready_at() - self.clock()) > 0:
                self.sleep(wait)
            now = self.clock()
            self.next_at = max(self.next_at, now - CATCH_UP_SECONDS) + self.interval
            self.requests += 1
            if self.rate:
                with self._counting:
                    self.under_way[self.requests] = now
            return self.requests

    def answered(self, request: int) -> None:
        """Note that a request's answer has begun to arrive, or that it failed; only a request's first call counts."""
        with self._counting:
            sent_at = self.under_way.pop(request, None)
            if sent_at is not None:
                now = self.clock()
                self.answered_at.append(now)
                self.answers += 1
                self.fastest = min(self.fastest, now - sent_at)

    def _ready_at(self) -> float:
        if not self.rate:
            return self.paused_until
        ready = max(self.next_at, self.paused_until)
        with self._counting:
            free = self.rate - len(self.under_way)
            if free <= 0:
                return max(ready, self.clock() + CHECK_SECONDS)
            if free <= len(self.answered_at):
                ready = max(ready, self.answered_at[-free] + WINDOW_SECONDS - self._least_seconds_under_way())
        return ready

    def _least_seconds_under_way(self) -> float:
        """The least time that a request is under way; 0 before `rate` requests are answered."""
        return min(self.fastest, 1.0) if self.answers >= self.rate else 0.0

    def pause(self, seconds: float) -> float:
        """Pause all requests; returns by how many seconds this prolongs the pause under way."""
        with self._counting:
            now = self.clock()
            longer = max(0.0, now + seconds - max(self.paused_until, now))
            self.paused_until = max(self.paused_until, now + seconds)
            return longer


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """The wait that a Retry-After header asks for, as seconds or as a date; None for any other header."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MOST_SECONDS)
    try:
        then = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):  # the parser's error depends on the text
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return min(max(0.0, (then - (now or datetime.now(UTC))).total_seconds()), MOST_SECONDS)
