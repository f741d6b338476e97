"""The options of a fetch, and its state: the results that the journal's lines record.

A new line and a line read back update the state by the same function, so a resumed fetch has the state of the killed
one. Memory holds two offsets a film, and page numbers and ids of the unfinished windows; never rows.
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
    """The films to fetch, the servers, and the speed."""

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
    """Films in the catalogue at which the fetch stops."""
    size: str = "w342"
    """TMDB's name of a poster size; 'none' leaves posters out. Existing posters keep their size."""
    rate: int = 40
    """Requests of all kinds per second; 0 for no limit."""
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
        """The conditions that the API checks. It omits adult films by default, as the 2018 study did."""
        conditions: dict[str, Any] = {}
        if self.languages:
            conditions["with_original_language"] = "|".join(self.languages)
        if self.min_votes:
            conditions["vote_count.gte"] = self.min_votes
        return conditions

    def window_key(self, window: Window) -> str:
        """The journal's key of a window under these conditions."""
        return f"{self.query()} {window}"

    def query(self) -> str:
        """All conditions but the dates, as one word: results of one query say nothing about another."""
        languages = "+".join(sorted(self.languages)) or "all"
        return f"{languages},votes>={self.min_votes}{',poster' if self.with_poster_only else ''}"


class Page(NamedTuple):
    """The totals of a window, which each of its pages states."""

    pages: int
    results: int

    def last(self) -> int:
        """The last page that the API lists."""
        return min(self.pages, MOST_PAGES)


class Refresh(NamedTuple):
    """A refresh of windows: films recorded before `offset` are fetched again."""

    offset: int
    query: str
    years: frozenset[int]

    def covers(self, key: str) -> bool:
        """Whether this refresh includes the window of a key."""
        query, dates = key.split(" ")
        return query == self.query and int(dates[:4]) in self.years


class State:
    """The results recorded in the journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.films, self.posters = Offsets(), Offsets()  # offsets of a film's newest lines
        self.done: set[str] = set()  # keys of finished windows; a key holds the query too
        self.split: set[str] = set()  # keys of windows whose halves are fetched instead
        self.read_again: set[str] = set()
        self.pages: dict[str, dict[int, Page]] = {}  # key of an unfinished window -> its recorded pages
        self.listed: dict[str, set[int]] = {}  # key -> the films on those pages
        self.passed_over: dict[str, set[int]] = {}  # query -> films of the id export outside the query
        self.refresh: Refresh | None = None  # the unfinished one
        self.damaged = LeftOut()  # damaged or unknown lines
        self.doubtful = False  # whether a film of the next page may be on a damaged line
        for number, (offset, line) in enumerate(journal.lines(), start=1):
            if line is None or not self._apply(offset, line):
                self.damaged.add("damaged lines", f"line {number:,}")
                self.doubtful = True
        self.doubtful = False

    def record(self, *lines: dict[str, Any]) -> None:
        """Write lines to the journal, then update the state."""
        for offset, line in self.journal.append(*lines):
            self._apply(offset, line)

    def _apply(self, offset: int, line: Line) -> bool:
        """Update the state by a line; returns whether the line is of a known kind.

        A page counts only with all its films recorded, a window only with all its pages.
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
                        if not self.is_fresh(film):  # in a refresh, the damaged line was the newer one
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
        """Whether the film's metadata is recorded and needs no refresh."""
        offset = self.films.get(film)
        return offset is not None and (self.refresh is None or offset >= self.refresh.offset)

    def film(self, film: int) -> FilmRow:
        """A film's newest metadata."""
        return self._line(self.films, film)["film"]

    def poster(self, film: int, path: str) -> Line | None:
        """The result for the poster at TMDB's `path`: `status`, `bytes`, `sha256`. None if not tried yet.

        An empty path, of a film that lost its poster at TMDB, gives the film's last poster.
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
    """The options, state and client that the parts of one fetch share."""

    options: FetchOptions
    state: State
    web: Web
    tmdb: Tmdb
    pool: ThreadPoolExecutor
    tally: Tally
    unknown_genres: Counter[str] = field(default_factory=Counter)

    def stopping(self) -> bool:
        """Whether to send no more requests: the user or the server ended the fetch, or the server is out of reach."""
        return self.web.stopping.is_set() or self.tally.hopeless()

    def enough(self) -> bool:
        """Whether to request no more films: the catalogue has --limit and no refresh is under way, or `stopping`."""
        limit = self.options.limit
        is_full = limit is not None and len(self.state.films) >= limit and self.state.refresh is None
        return is_full or self.stopping()

    def answers(
        self, ask: Callable[[Item], Result], items: Iterable[Item], enough: Callable[[], bool], in_order: bool = True
    ) -> Iterator[tuple[Item, Result | FetchError]]:
        """Call `ask` for items in threads until `enough`; yields each item with its result or its error.

        Items whose request was stopped are left out. Without `in_order`, items come as their requests end.
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
    """The time in the journal's format."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()
