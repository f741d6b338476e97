"""The films: every page of every window of release dates, and the films without a date through the id export.

Pages are requested several at a time and recorded in order, so that --limit always takes the same films.
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


def fetch_films(context: FetchContext) -> None:
    """Record every film of the requested years that is not recorded yet. Raises KeyRefusedError."""
    waiting = [spans([year])[0] for year in reversed(context.options.years)]
    context.tally.start("films", _count_films(context))
    while waiting and not context.enough():
        waiting += _fetch_window(context, waiting.pop())[::-1]


def _count_films(context: FetchContext) -> int | None:
    """The number of films to come, for the time left; None where counting would cost as much as the first pages."""
    options = context.options
    windows = spans(options.years)
    if len(windows) > len(options.years) / 2 or all(_is_done(context, year) for year in options.years):
        return None
    total = 0 if context.state.refresh else -len(context.state.films)
    for window in windows:
        try:
            total += context.tmdb.discover(window, 1, options.filters())["total_results"]
        except FetchError:
            return None
    return max(0, total)


def _is_done(context: FetchContext, year: int) -> bool:
    key = context.options.window_key(spans([year])[0])
    return key in context.state.done or key in context.state.split


def _fetch_window(context: FetchContext, window: Window) -> tuple[Window, ...]:
    """Record a window's films; returns the halves to fetch instead if it holds more than the API will list."""
    state = context.state
    key = context.options.window_key(window)
    if key in state.done:
        return ()
    if key in state.split:
        return window.halves()
    if 1 not in state.pages.get(key, {}) and not _fetch_pages(context, window, key, [1]):
        return ()
    first = state.pages[key][1]
    overflows = first.pages > first.last() or first.results >= MOST_FILMS
    if overflows and window.first < window.last:
        state.record({"split": key})
        return window.halves()
    if not _fetch_pages(context, window, key, range(2, first.last() + 1)):
        return ()
    if len(state.listed[key]) < first.results and not overflows and key not in state.read_again:
        # Films moved between pages while these were read, or the API's order varies: read all pages once more.
        state.record({"again": key})
        if not _fetch_pages(context, window, key, range(1, first.last() + 1)):
            return ()
    listed = len(state.listed[key])
    if listed < first.results:
        reason = f"the API lists no more than {MOST_FILMS:,}" if overflows else "the others were on no page"
        context.tally.notes.append(f"{window}: {listed:,} of {first.results:,} films; {reason}")
    state.record({"window": key, "films": listed, "results": first.results})
    return ()


def _fetch_pages(context: FetchContext, window: Window, key: str, numbers: Iterable[int]) -> bool:
    """Record the films of a window's missing pages; returns whether all pages are recorded now."""
    recorded = context.state.pages.get(key, {})
    wanted = [number for number in numbers if number not in recorded]

    def ask(number: int) -> PageAnswer:
        return context.tmdb.discover(window, number, context.options.filters())

    for number, answer in context.answers(ask, wanted, context.enough):
        if isinstance(answer, FetchError):
            context.tally.missing[PAGES] += 1
            context.tally.failed(answer, 0)
            context.state.record({"failed": f"{key}, page {number}", "reason": str(answer)})
        else:
            _record_page(context, key, number, answer)
    recorded = context.state.pages.get(key, {})
    return all(number in recorded for number in numbers)


def _record_page(context: FetchContext, key: str, number: int, answer: PageAnswer) -> None:
    """Record a page's films and then the page, in one write; a page that --limit cuts short is not recorded."""
    rows = [film_row(film["id"], film, context.unknown_genres) for film in answer["results"]]
    wanted = [row for row in rows if row["poster_path"] or not context.options.with_poster_only]
    lines, complete = film_lines(context, wanted)
    if complete:
        page = Page(max(1, answer["total_pages"]), answer["total_results"])
        ids = [row["tmdb_id"] for row in rows]
        lines.append({"page": number, "of": key, "pages": page.pages, "results": page.results, "ids": ids})
    context.state.record(*lines)
    context.tally.succeeded(len(rows))


def film_lines(context: FetchContext, rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """The journal's lines for films that are new or to be refreshed, and whether --limit admits all of them."""
    state, limit = context.state, context.options.limit
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
