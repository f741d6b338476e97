"""Windows of release dates: years to request, halved where a window holds more films than the API will list."""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

FIRST_YEAR = 1870  # TMDB's oldest films are of the 1870s
YEARS_AHEAD = 10  # announced films have dates too


class Window(NamedTuple):
    """Release dates from `first` to `last`, both included."""

    first: date
    last: date

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"

    def halves(self) -> tuple["Window", "Window"]:
        """The earlier and the later half; only for windows of two days or more."""
        middle = self.first + (self.last - self.first) // 2
        return Window(self.first, middle), Window(middle + timedelta(days=1), self.last)


def all_years() -> list[int]:
    """Every year in which TMDB may have a film."""
    return list(range(FIRST_YEAR, datetime.now(UTC).year + YEARS_AHEAD + 1))


def parse_years(text: str) -> list[int]:
    """Years of '1999', '1990-1999' or '1980,1990-1999', ascending. ValueError for anything else."""
    years: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{4})(?:-([0-9]{4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 < first <= last:
            raise ValueError(f"--years takes years and ranges such as 1980,1990-1999, not `{text}`")
        years.update(range(first, last + 1))
    return sorted(years)


def spans(years: Iterable[int]) -> list[Window]:
    """The fewest windows that cover ascending years and no others."""
    windows: list[Window] = []
    for year in years:
        first = date(year, 1, 1)
        if windows and windows[-1].last + timedelta(days=1) == first:
            first = windows.pop().first
        windows.append(Window(first, date(year, 12, 31)))
    return windows
