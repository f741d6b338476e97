"""Progress of a fetch: a bar on a terminal, elsewhere a line every ten seconds; failures by cause."""

import sys
import time
from collections import Counter

from genre_dist.progress import progress_bar
from genre_dist.tmdb.web import FetchError, UnreachableError

PAGES, UNDATED = "pages of films", "films without a date"
"""Kinds of missing results."""
SECONDS_PER_LINE = 10.0
MOST_UNREACHABLE_IN_A_ROW = 50


class Tally:
    """Counts successes and failures; the bar shows while `progress` is entered."""

    def __init__(self) -> None:
        self.causes: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.notes: list[str] = []
        self.unreachable_in_a_row = 0
        self.progress = progress_bar()
        self.start("", 0)

    def start(self, name: str, total: int | None) -> None:
        """Begin to count items of a kind; `total` is their number, if known."""
        self.name, self.total, self.count = name, total, 0
        self.started_at = self.printed_at = time.monotonic()
        if name:
            self.task = self.progress.add_task(name, total=total)

    def succeeded(self, count: int = 1) -> None:
        """Count items that an answer of the server completed."""
        self.unreachable_in_a_row = 0
        self._advance(count)

    def failed(self, failure: FetchError, count: int = 1) -> None:
        """Count items that failed after all attempts."""
        self.causes[str(failure)] += 1
        self.unreachable_in_a_row = self.unreachable_in_a_row + 1 if isinstance(failure, UnreachableError) else 0
        self._advance(count)

    def hopeless(self) -> bool:
        """Whether the server has been out of reach for so long that going on would only collect failures."""
        return self.unreachable_in_a_row >= MOST_UNREACHABLE_IN_A_ROW

    def failures(self) -> str:
        """The failures by cause, most frequent first; '' if there are none."""
        return ", ".join(f"{count:,} {cause}" for cause, count in self.causes.most_common(5))

    def _advance(self, count: int) -> None:
        self.count += count
        failures = f" (failed: {self.failures()})" if self.causes else ""
        self.progress.update(self.task, advance=count, description=self.name + failures)
        now = time.monotonic()
        if self.progress.disable and now - self.printed_at >= SECONDS_PER_LINE:
            self.printed_at = now
            print(self._line(now - self.started_at) + failures, file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        rate = self.count / seconds
        if self.total is None:
            return f"{self.name}: {self.count:,}, {rate:,.1f}/s"
        left = max(0, self.total - self.count) / rate / 60 if rate else 0.0
        return f"{self.name}: {self.count:,} of {self.total:,}, {rate:,.1f}/s, {left:,.1f} min left"
