"""The films: every page of every window of release dates, and the films without a date through the id export.

Pages are asked for several at a time and recorded in order, so that --limit always takes the same films.
"""

from collections.abc import Iterable
from typing import Any

from genre_dist.catalogue.tables import film_row
from genre_dist.tmdb.answers import PageAnswer
from genre_dist.tmdb.api import MOST_FILMS
from genre_dist.tmdb.fetch_state import FetchContext, Page, now
from genre_dist.tmdb.tally import PAGES
from genre_dist.tmdb.web import FetchError
from genre_dist.tmdb.windows import Window, spans


def fetch_films(work: FetchContext) -> None:
    """Record every film of the years asked for that is not recorded yet. Raises KeyRefusedError."""
    waiting = [spans([year])[0] for year in reversed(work.options.years)]
    work.tally.start("films", _count_films(work))
    while waiting and not work.enough():
        waiting += _fetch_window(work, waiting.pop())[::-1]


def _count_films(work: FetchContext) -> int | None:
    """How many films are to come, to tell the time left; None where a count would cost as much as the first pages."""
    options = work.options
    windows = spans(options.years)
    if len(windows) > len(options.years) / 2 or all(_is_done(work, year) for year in options.years):
        return None
    total = 0 if work.state.refresh else -len(work.state.films)
    for window in windows:
        try:
            total += work.tmdb.discover(window, 1, options.filters())["total_results"]
        except FetchError:
            return None
    return max(0, total)


def _is_done(work: FetchContext, year: int) -> bool:
    key = work.options.window_key(spans([year])[0])
    return key in work.state.done or key in work.state.split


def _fetch_window(work: FetchContext, window: Window) -> tuple[Window, ...]:
    """Record a window's films; its halves, to be fetched instead, if it holds more than the API will list."""
    state = work.state
    key = work.options.window_key(window)
    if key in state.done:
        return ()
    if key in state.split:
        return window.halves()
    if 1 not in state.pages.get(key, {}) and not _fetch_pages(work, window, key, [1]):
        return ()
    first = state.pages[key][1]
    overflows = first.pages > first.last() or first.results >= MOST_FILMS
    if overflows and window.first < window.last:
        state.record({"split": key})
        return window.halves()
    if not _fetch_pages(work, window, key, range(2, first.last() + 1)):
        return ()
    if len(state.listed[key]) < first.results and not overflows and key not in state.read_again:
        # Films moved between pages while these were read, or the API's order is not the same every time.
        state.record({"again": key})
        if not _fetch_pages(work, window, key, range(1, first.last() + 1)):
            return ()
    listed = len(state.listed[key])
    if listed < first.results:
        reason = f"the API lists no more than {MOST_FILMS:,}" if overflows else "the others were on no page"
        work.tally.notes.append(f"{window}: {listed:,} of {first.results:,} films; {reason}")
    state.record({"window": key, "films": listed, "results": first.results})
    return ()


def _fetch_pages(work: FetchContext, window: Window, key: str, numbers: Iterable[int]) -> bool:
    """Record the films of a window's pages, leaving out pages that are recorded; whether all of them are now."""
    recorded = work.state.pages.get(key, {})
    wanted = [number for number in numbers if number not in recorded]

    def ask(number: int) -> PageAnswer:
        return work.tmdb.discover(window, number, work.options.filters())

    for number, answer in work.answers(ask, wanted, work.enough):
        if isinstance(answer, FetchError):
            work.tally.missing[PAGES] += 1
            work.tally.failed(answer, 0)
            work.state.record({"failed": f"{key}, page {number}", "reason": str(answer)})
        else:
            _record_page(work, key, number, answer)
    recorded = work.state.pages.get(key, {})
    return all(number in recorded for number in numbers)


def _record_page(work: FetchContext, key: str, number: int, answer: PageAnswer) -> None:
    """Record a page's films and then the page, in one write; not the page if --limit cuts it short."""
    rows = [film_row(film["id"], film, work.unknown_genres) for film in answer["results"]]
    wanted = [row for row in rows if row["poster_path"] or not work.options.with_poster_only]
    lines, whole = film_lines(work, wanted)
    if whole:
        page = Page(max(1, answer["total_pages"]), answer["total_results"])
        ids = [row["tmdb_id"] for row in rows]
        lines.append({"page": number, "of": key, "pages": page.pages, "results": page.results, "ids": ids})
    work.state.record(*lines)
    work.tally.succeeded(len(rows))


def film_lines(work: FetchContext, rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """The journal's lines for the films that are new or to be refreshed, and whether --limit has room for all."""
    state, limit = work.state, work.options.limit
    left = None if limit is None else limit - len(state.films)
    lines: dict[int, dict[str, Any]] = {}
    fetched_at = now()
    for row in rows:
        film = row["tmdb_id"]
        if state.is_fresh(film) or film in lines:
            continue
        if film in state.films:
            row["imdb_id"] = row["imdb_id"] or state.film(film)["imdb_id"]
        elif left is not None:
            if left <= 0:
                return list(lines.values()), False
            left -= 1
        lines[film] = {"film": row | {"fetched_at": fetched_at}}
    return list(lines.values()), True
