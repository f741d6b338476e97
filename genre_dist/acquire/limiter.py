"""How fast a fetch may ask: one token bucket for all threads, and the server's own word on when to come back."""

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# A second's requests are spread over a little more: the server counts when they arrive, not when they were
# sent, and some take a few milliseconds longer than others.
SPREAD_SECONDS = 1.025
CATCH_UP_SECONDS = 0.1  # how far behind its pace the limiter may fall and still make up for it


class Limiter:
    """A token bucket for all threads: `rate` requests a second, evenly, and never more in any second; 0 for no limit.

    A pause that the server asked for holds for everybody, with or without a rate.
    """

    def __init__(
        self, rate: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.clock, self.sleep = clock, sleep
        self.interval = SPREAD_SECONDS / rate if rate else 0.0
        self.last_second: deque[float] = deque(maxlen=rate)  # when the last `rate` tokens were given
        self.next_token = self.paused_until = clock()
        self._turn, self._pausing = threading.Lock(), threading.Lock()

    def acquire(self) -> None:
        """Return when the next request may be sent."""
        with self._turn:
            while (wait := self._ready_at() - self.clock()) > 0:
                self.sleep(wait)
            now = self.clock()
            self.next_token = max(self.next_token, now - CATCH_UP_SECONDS) + self.interval
            self.last_second.append(now)

    def _ready_at(self) -> float:
        ready = max(self.next_token, self.paused_until) if self.interval else self.paused_until
        if self.interval and len(self.last_second) == self.last_second.maxlen:
            ready = max(ready, self.last_second[0] + SPREAD_SECONDS)
        return ready

    def pause(self, seconds: float) -> None:
        """Let nobody ask for so long; of several pauses the one that ends last counts."""
        with self._pausing:
            self.paused_until = max(self.paused_until, self.clock() + seconds)


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """What a Retry-After header asks for, in seconds; it may give seconds or a date. None if it says nothing usable."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - (now or datetime.now(UTC))).total_seconds())
