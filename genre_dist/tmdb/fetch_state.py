"""What a fetch was asked for, and what is done: the journal's lines, read back.

Recording a line and reading it back go through the same function, so a resumed fetch knows what the killed one knew.
Memory holds two offsets a film, and page numbers and ids of the windows that are not finished; never rows.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from genre_dist.catalogue.left_out import LeftOut
from genre_dist.tmdb.api import MOST_PAGES, Tmdb
from genre_dist.tmdb.journal import FilmRow, Journal, Line, Offsets
from genre_dist.tmdb.tally import Tally
from genre_dist.tmdb.web import FetchError, StoppedError, Web
from genre_dist.tmdb.windows import Window
from genre_dist.workers import outcomes

Item = TypeVar("Item")
Result = TypeVar("Result")
NO_POSTERS = "none"  # the value of --size that fetches none


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """What to fetch, from where, and how fast."""

    out: Path
    """The catalogue's folder."""
    key: str = field(repr=False)
    """A v3 API key or a v4 read access token; never written anywhere."""
    years: list[int]
    """Release years, ascending."""
    languages: tuple[str, ...] = ()
    """Original languages as ISO 639-1 codes; all if empty."""
    min_votes: int = 0
    with_poster_only: bool = False
    with_undated: bool = False
    """Films without a release date too, through the daily export of ids."""
    limit: int | None = None
    """Add films until the catalogue has so many."""
    size: str = "w342"
    """TMDB's name of a poster size; 'none' leaves posters out. Posters that are there already keep their size."""
    rate: int = 40
    """Requests a second, of all kinds together; 0 for no limit."""
    concurrency: int = 16
    """Requests at a time."""
    retry_failed: bool = False
    refresh: bool = False
    api_url: str = "https://api.themoviedb.org/3"
    image_url: str = "https://image.tmdb.org/t/p"
    export_url: str = "http://files.tmdb.org/p/exports"

    def __post_init__(self) -> None:
        for name in ("limit", "concurrency"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} must be 1 or more, not {value}")
        for language in self.languages:
            if not re.fullmatch("[a-z]{2}", language):
                raise ValueError(f"--languages takes codes of two letters such as en,fr, not `{language}`")
        for name in ("rate", "min_votes"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, not {getattr(self, name)}")

    def filters(self) -> dict[str, Any]:
        """The conditions that the API checks itself. It leaves adult films out unless asked; so did the study."""
        conditions: dict[str, Any] = {}
        if self.languages:
            conditions["with_original_language"] = "|".join(self.languages)
        if self.min_votes:
            conditions["vote_count.gte"] = self.min_votes
        return conditions

    def window_key(self, window: Window) -> str:
        """What the journal calls a window under these conditions."""
        return f"{self.query()} {window}"

    def query(self) -> str:
        """All conditions but the dates, as one word: what is done under one says nothing about another."""
        languages = "+".join(sorted(self.languages)) or "all"
        return f"{languages},votes>={self.min_votes}{',poster' if self.with_poster_only else ''}"


class Page(NamedTuple):
    """What a page says about its whole window."""

    pages: int
    results: int

    def last(self) -> int:
        """The last page that the API lists."""
        return min(self.pages, MOST_PAGES)


class Refresh(NamedTuple):
    """A renewal of windows: films recorded before `offset` are to be brought up to date."""

    offset: int
    query: str
    years: frozenset[int]

    def covers(self, key: str) -> bool:
        """Whether it renews the window of this key."""
        query, dates = key.split(" ")
        return query == self.query and int(dates[:4]) in self.years


class State:
    """What the journal says is done."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.films, self.posters = Offsets(), Offsets()  # a film's newest lines
        self.done: set[str] = set()  # windows; each key holds the query too
        self.split: set[str] = set()
        self.read_again: set[str] = set()
        self.pages: dict[str, dict[int, Page]] = {}  # of windows that are not done
        self.listed: dict[str, set[int]] = {}  # the films on those pages
        self.passed_over: dict[str, set[int]] = {}  # query -> films of the id export that do not belong
        self.refresh: Refresh | None = None  # the one that is under way
        self.damaged = LeftOut()  # lines that say nothing
        self.doubtful = False  # whether what belongs to the next page may be damaged
        for number, (offset, line) in enumerate(journal.lines(), start=1):
            if line is None or not self._take(offset, line):
                self.damaged.add("damaged lines", f"line {number:,}")
                self.doubtful = True
        self.doubtful = False

    def record(self, *lines: dict[str, Any]) -> None:
        """Write to the journal, then count it as done."""
        for offset, line in self.journal.append(*lines):
            self._take(offset, line)

    def _take(self, offset: int, line: Line) -> bool:
        """Count as done what a line says; whether it says anything.

        Only what is there in whole is done: a page with all its films, a window with all its pages.
        """
        match line:
            case {"film": {"tmdb_id": film}}:
                self.films[film] = offset
            case {"poster": film, "path": _, "status": _, "bytes": _, "sha256": _}:
                self.posters[film] = offset
            case {"page": page, "of": key, "pages": pages, "results": results, "ids": ids}:
                if self.doubtful:
                    self.doubtful = False
                    for film in ids:
                        if not self.is_fresh(film):  # in a refresh: the damaged line was newer
                            self.films.discard(film)
                elif ",poster" in key or all(film in self.films for film in ids):
                    self.pages.setdefault(key, {})[page] = Page(pages, results)
                    self.listed.setdefault(key, set()).update(ids)
            case {"again": key}:
                self.read_again.add(key)
                self.pages.pop(key, None)
            case {"split": key}:
                self.split.add(key)
                self._forget(key)
            case {"window": key}:
                if self._has_all_pages(key):
                    self.done.add(key)
                    self._forget(key)
            case {"passed_over": film, "query": query}:
                self.passed_over.setdefault(query, set()).add(film)
            case {"refresh": years, "query": query}:
                self.refresh = Refresh(offset, query, frozenset(years))
                for key in {*self.done, *self.split, *self.pages}:
                    if self.refresh.covers(key):
                        self.done.discard(key)
                        self.split.discard(key)
                        self._forget(key)
                self.passed_over.pop(query, None)
            case {"refreshed": _}:
                self.refresh = None
            case {"failed": _}:
                pass
            case _:
                return False
        return True

    def _has_all_pages(self, key: str) -> bool:
        pages = self.pages.get(key, {})
        return 1 in pages and all(number in pages for number in range(1, pages[1].last() + 1))

    def _forget(self, key: str) -> None:
        self.pages.pop(key, None)
        self.listed.pop(key, None)
        self.read_again.discard(key)

    def is_fresh(self, film: int) -> bool:
        """Whether the film's metadata is there, and not to be refreshed."""
        offset = self.films.get(film)
        return offset is not None and (self.refresh is None or offset >= self.refresh.offset)

    def film(self, film: int) -> FilmRow:
        """A film's newest metadata."""
        return self._line(self.films, film)["film"]

    def poster(self, film: int, path: str) -> Line | None:
        """What became of the poster at `path`, TMDB's name of it: `status`, `bytes`, `sha256`. None if not tried yet.

        If TMDB has no poster, the one that the film had before is meant.
        """
        if film not in self.posters:
            return None
        line = self._line(self.posters, film)
        return line if line["path"] == path or not path else None

    def _line(self, offsets: Offsets, film: int) -> Line:
        offset = offsets.get(film)
        if offset is None:
            raise KeyError(film)
        return self.journal.read(offset)


@dataclass
class FetchContext:
    """What the parts of one fetch share."""

    options: FetchOptions
    state: State
    web: Web
    tmdb: Tmdb
    pool: ThreadPoolExecutor
    tally: Tally
    unknown_genres: Counter[str] = field(default_factory=Counter)

    def stopping(self) -> bool:
        """Whether to ask for nothing more: told to stop, or the server is out of reach."""
        return self.web.stopping.is_set() or self.tally.hopeless()

    def enough(self) -> bool:
        """Whether to ask for no more films: the catalogue has those it may have, none of them to be refreshed."""
        limit = self.options.limit
        is_full = limit is not None and len(self.state.films) >= limit and self.state.refresh is None
        return is_full or self.stopping()

    def answers(
        self, ask: Callable[[Item], Result], items: Iterable[Item], enough: Callable[[], bool], in_order: bool = True
    ) -> Iterator[tuple[Item, Result | FetchError]]:
        """Ask for items in threads until there are enough: each with its answer or why there is none.

        Items whose request was stopped are left out. The other order is that in which requests end.
        """
        wanted = takewhile(lambda _: not enough(), items)
        in_flight = self.options.concurrency * (1 if in_order else 2)
        for item, future in outcomes(self.pool, ask, wanted, in_flight, in_order):
            try:
                yield item, future.result()
            except StoppedError:
                continue
            except FetchError as failure:
                yield item, failure


def now() -> str:
    """The time as the journal has it."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()
