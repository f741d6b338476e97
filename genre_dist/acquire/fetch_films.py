"""The films: every page of every window of release dates, and the films without a date through the id export.

Pages are asked for several at a time and recorded in order, so that --limit always takes the same films.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from genre_dist.acquire.fetch_state import Page, Work
from genre_dist.acquire.tmdb import MOST_FILMS, MOST_PAGES, film_row
from genre_dist.acquire.web import TIMEOUT_SECONDS, FetchError, StoppedError, outcomes
from genre_dist.acquire.windows import Window, spans
from genre_dist.atomic import atomic_file

DAYS_OF_EXPORTS = 4  # today's may not be there yet; older ones are of little use
Item = TypeVar("Item")


def fetch_films(work: Work) -> None:
    """Record every film of the years asked for that is not recorded yet. Raises KeyRefusedError."""
    waiting = [spans([year])[0] for year in reversed(work.options.years)]
    work.tally.start("films", _count_films(work))
    while waiting and not work.stopping() and not work.full():
        waiting += _fetch_window(work, waiting.pop())[::-1]


def _count_films(work: Work) -> int | None:
    """How many films are to come, to tell the time left; None where a count would cost as much as the first pages."""
    options = work.options
    windows = spans(options.years)
    if len(windows) > len(options.years) / 2 or all(_is_done(work, year) for year in options.years):
        return None
    total = 0 if work.state.refresh else -len(work.state.films)
    for window in windows:
        try:
            total += int(work.tmdb.discover(window, 1, options.filters())["total_results"])
        except (FetchError, StoppedError, KeyError, TypeError, ValueError):
            return None
    return max(0, total)


def _is_done(work: Work, year: int) -> bool:
    key = work.options.window_key(spans([year])[0])
    return key in work.state.done or key in work.state.split


def _fetch_window(work: Work, window: Window) -> tuple[Window, ...]:
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
    overflows = first.pages > MOST_PAGES or first.results >= MOST_FILMS
    if overflows and window.first < window.last:
        state.record({"split": key})
        return window.halves()
    if not _fetch_pages(work, window, key, range(2, _last_page(first) + 1)):
        return ()
    if len(state.listed[key]) < first.results and not overflows and key not in state.read_again:
        # Films moved between pages while these were read, or the API's order is not the same every time.
        state.record({"again": key})
        if not _fetch_pages(work, window, key, range(1, _last_page(first) + 1)):
            return ()
    listed = len(state.listed[key])
    if listed < first.results:
        reason = f"the API lists no more than {MOST_FILMS:,}" if overflows else "the others were on no page"
        work.tally.notes.append(f"{window}: {listed:,} of {first.results:,} films; {reason}")
    state.record({"window": key, "films": listed, "results": first.results})
    return ()


def _last_page(first: Page) -> int:
    return min(first.pages, MOST_PAGES)


def _fetch_pages(work: Work, window: Window, key: str, numbers: Iterable[int]) -> bool:
    """Record the films of a window's pages, leaving out pages that are recorded; whether all of them are now."""
    recorded = work.state.pages.get(key, {})
    wanted = [number for number in numbers if number not in recorded]

    def ask(number: int) -> dict[str, Any]:
        return work.tmdb.discover(window, number, work.options.filters())

    for number, future in outcomes(work.pool, ask, _until_enough(work, wanted), work.options.concurrency, True):
        answer = _answer(work, future, f"{key}, page {number}")
        if answer is None:
            work.tally.missing_pages += 1
        else:
            _record_page(work, key, number, answer)
    recorded = work.state.pages.get(key, {})
    return all(number in recorded for number in numbers)


def _until_enough(work: Work, items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        if work.stopping() or work.full():
            return
        yield item


def _answer(work: Work, future: "Future[dict[str, Any]]", what: str) -> dict[str, Any] | None:
    """A finished request's answer; None if there is none, and then the journal says why."""
    try:
        return future.result()
    except StoppedError:
        return None
    except FetchError as failure:
        work.tally.failed(failure, 0)
        work.state.record({"failed": what, "reason": str(failure)})
        return None


def _record_page(work: Work, key: str, number: int, answer: dict[str, Any]) -> None:
    """Record a page's films and then the page, in one write; not the page if --limit cuts it short."""
    rows = [row for film in answer["results"] if (row := film_row(film, work.unknown_genres))]
    wanted = [row for row in rows if row["poster_path"] or not work.options.with_poster_only]
    lines, whole = _film_lines(work, wanted)
    if whole:
        page = Page(int(answer.get("total_pages") or 1), int(answer.get("total_results") or len(rows)))
        ids = [row["tmdb_id"] for row in rows]
        lines.append({"page": number, "of": key, "pages": page.pages, "results": page.results, "ids": ids})
    work.state.record(*lines)
    work.tally.succeeded(len(rows))


def _film_lines(work: Work, rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """The journal's lines for the films that are new or to be refreshed, and whether --limit has room for all."""
    state, limit = work.state, work.options.limit
    room = None if limit is None else limit - len(state.films)
    lines: dict[int, dict[str, Any]] = {}
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    for row in rows:
        film = row["tmdb_id"]
        if state.is_fresh(film) or film in lines:
            continue
        if film in state.films:
            row["imdb_id"] = row["imdb_id"] or state.film(film)["imdb_id"]
        elif room is not None:
            if room <= 0:
                return list(lines.values()), False
            room -= 1
        lines[film] = {"film": row | {"fetched_at": now}}
    return list(lines.values()), True


# ---- films without a date -------------------------------------------------------------------------------------------


def fetch_undated(work: Work, folder: Path) -> None:
    """Record the films of the daily id export that are on no page: those without a date, asked for one by one.

    The export is kept in `folder` while it is worked on, and read as a stream. Raises ValueError if it is damaged.
    """
    export = _export(work, folder)
    if export is None:
        return
    work.tally.start("films of the id export", sum(1 for _ in _unsettled(work, export)))
    ids = _until_enough(work, _unsettled(work, export))
    whole = True
    for film, future in outcomes(work.pool, work.tmdb.movie, ids, work.options.concurrency, True):
        try:
            answer = future.result()
        except StoppedError:
            whole = False
        except FetchError as failure:
            whole &= _record_missing(work, film, failure)
        else:
            _record_film(work, film, answer)
    if whole and not work.stopping():
        export.unlink()


def _record_missing(work: Work, film: int, failure: FetchError) -> bool:
    """Note a film that could not be had; whether that settles it, as a film does that TMDB has deleted."""
    if str(failure) == "404":
        work.state.record({"passed_over": film, "query": work.options.query(), "reason": "404"})
        work.tally.succeeded()
        return True
    work.tally.failed(failure)
    work.tally.missing_films += 1
    work.state.record({"failed": f"film {film}", "reason": str(failure)})
    return False


def _record_film(work: Work, film: int, answer: dict[str, Any]) -> None:
    row = film_row(answer, work.unknown_genres)
    if row is None or not _is_wanted(work, row, answer):
        work.state.record({"passed_over": film, "query": work.options.query(), "reason": "the options leave it out"})
    else:
        work.state.record(*_film_lines(work, [row])[0])
    work.tally.succeeded()


def _is_wanted(work: Work, row: dict[str, Any], answer: dict[str, Any]) -> bool:
    """The conditions that `discover` would have checked."""
    options = work.options
    year = row["release_date"][:4]
    return (
        (not options.languages or row["original_language"] in options.languages)
        and (answer.get("vote_count") or 0) >= options.min_votes
        and (bool(row["poster_path"]) or not options.with_poster_only)
        and (not year or int(year) in options.years)
    )


def _unsettled(work: Work, export: Path) -> Iterator[int]:
    """The export's films that are not recorded, or to be refreshed, in its order."""
    state = work.state
    passed_over = state.passed_over.setdefault(work.options.query(), set())
    for film in _exported_ids(export):
        if film in passed_over or state.is_fresh(film):
            continue
        # In a refresh, films with a date are brought up to date by their window.
        if film not in state.films or not state.film(film)["release_date"]:
            yield film


def _exported_ids(export: Path) -> Iterator[int]:
    try:
        with gzip.open(export, "rb") as file:
            for line in file:
                yield int(json.loads(line)["id"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        export.unlink()
        raise ValueError(f"{export} is damaged ({error}) and was deleted; run again to fetch it again") from error


def _export(work: Work, folder: Path) -> Path | None:
    """The newest id export there is, fetched if it is not in `folder`; None, with a failure noted, if there is none."""
    failure = FetchError("404")
    for days in range(DAYS_OF_EXPORTS):
        day = datetime.now(UTC).date() - timedelta(days=days)
        target = folder / _export_name(day)
        try:
            if not target.exists():
                _download(work, f"{work.options.export_url.rstrip('/')}/{target.name}", target)
            return target
        except StoppedError:
            return None
        except FetchError as error:
            failure = error
            if str(error) not in ("403", "404"):  # what the file server says of files that are not there
                break
    work.tally.failed(failure, 0)
    work.tally.missing_pages += 1
    work.tally.notes.append(f"no id export of the last {DAYS_OF_EXPORTS} days at {work.options.export_url}: {failure}")
    return None


def _export_name(day: date) -> str:
    return f"movie_ids_{day:%m_%d_%Y}.json.gz"


def _download(work: Work, url: str, target: Path) -> None:
    def once() -> None:
        with work.web.session.get(url, stream=True, timeout=TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            with atomic_file(target) as file:
                # raw: the file stays compressed even if the server calls that a transfer matter
                while chunk := response.raw.read(1 << 16):
                    file.write(chunk)

    work.web.patiently(once)
