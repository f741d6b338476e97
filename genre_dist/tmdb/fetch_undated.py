"""The films without a date: those of TMDB's daily id export that no window of release dates has."""

import gzip
import zlib
from array import array
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from genre_dist.atomic import atomic_file
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.tables import film_row
from genre_dist.tmdb.answers import EXPORTED, FilmAnswer, read_answer
from genre_dist.tmdb.fetch_films import film_lines
from genre_dist.tmdb.fetch_posters import MOST_REDIRECTS
from genre_dist.tmdb.fetch_state import FetchContext
from genre_dist.tmdb.tally import PAGES, UNDATED
from genre_dist.tmdb.web import FetchError, StoppedError, UnreachableError, pieces

DAYS_OF_EXPORTS = 4  # today's may not be there yet; older ones are of little use
LARGEST_BYTES = 1 << 30  # packed; TMDB's has some 30 MB
LARGEST_UNPACKED_BYTES = 8 << 30
LONGEST_LINE = 1 << 16


def fetch_undated(work: FetchContext, folder: Path) -> None:
    """Record the films of the daily id export that are on no page: those without a date, asked for one by one.

    The export is kept in `folder` while it is worked on, and read as a stream.
    """
    export = _export(work, folder)
    if export is None:
        return
    ids = array("q", _unsettled(work, export))
    work.tally.start("films of the id export", len(ids))
    whole = True
    for film, answer in work.answers(work.tmdb.movie, ids, work.enough):
        if isinstance(answer, FetchError):
            whole &= _record_missing(work, film, answer)
        else:
            _record_film(work, film, answer)
    if whole and not work.stopping():
        export.unlink()


def _record_missing(work: FetchContext, film: int, failure: FetchError) -> bool:
    """Note a film that could not be had; whether that settles it, as a film does that TMDB has deleted."""
    if str(failure) == "404":
        work.state.record({"passed_over": film, "query": work.options.query(), "reason": "404"})
        work.tally.succeeded()
        return True
    work.tally.failed(failure)
    work.tally.missing[UNDATED] += 1
    work.state.record({"failed": f"film {film}", "reason": str(failure)})
    return False


def _record_film(work: FetchContext, film: int, answer: FilmAnswer) -> None:
    row = film_row(film, answer, work.unknown_genres)
    if _is_wanted(work, row, answer):
        work.state.record(*film_lines(work, [row])[0])
    else:
        work.state.record({"passed_over": film, "query": work.options.query(), "reason": "the options leave it out"})
    work.tally.succeeded()


def _is_wanted(work: FetchContext, row: dict[str, Any], answer: FilmAnswer) -> bool:
    """The conditions that `discover` would have checked."""
    options = work.options
    year = row["release_date"][:4]
    return (
        (not options.languages or row["original_language"] in options.languages)
        and (answer.get("vote_count") or 0) >= options.min_votes
        and (bool(row["poster_path"]) or not options.with_poster_only)
        and (not year or int(year) in options.years)
    )


def _unsettled(work: FetchContext, export: Path) -> Iterator[int]:
    """The export's films that are not recorded, or to be refreshed, in its order."""
    state = work.state
    passed_over = state.passed_over.setdefault(work.options.query(), set())
    for film in _exported_ids(work, export):
        if film in passed_over or state.is_fresh(film):
            continue
        # In a refresh, films with a date are brought up to date by their window.
        if film not in state.films or not state.film(film)["release_date"]:
            yield film


def _exported_ids(work: FetchContext, export: Path) -> Iterator[int]:
    """The ids of an export that is whole. Lines without one are told, and count as films that are missing."""
    odd = LeftOut()
    with gzip.open(export) as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), start=1):
            try:
                yield read_answer(EXPORTED, line)["id"]
            except FetchError:
                odd.add("lines name no film", f"line {number:,}")
    work.tally.missing[UNDATED] += odd.counts.total()
    work.tally.notes += [f"{export.name}: {lines}; passed over" for lines in odd.lines()]


def _export(work: FetchContext, folder: Path) -> Path | None:
    """The newest id export there is, fetched if it is not in `folder`; None, with a failure noted, if there is none."""
    failure = FetchError("404")
    for days in range(DAYS_OF_EXPORTS):
        day = datetime.now(UTC).date() - timedelta(days=days)
        target = folder / _export_name(day)
        try:
            if not _is_whole(target):
                _download(work, f"{work.options.export_url.rstrip('/')}/{target.name}", target)
            for older in set(folder.glob("movie_ids_*.json.gz")) - {target}:
                older.unlink()
            return target
        except StoppedError:
            return None
        except FetchError as error:
            failure = error
            if str(error) not in ("403", "404"):  # what the file server says of files that are not there
                break
    work.tally.failed(failure, 0)
    work.tally.missing[PAGES] += 1
    work.tally.notes.append(f"no id export of the last {DAYS_OF_EXPORTS} days at {work.options.export_url}: {failure}")
    return None


def _export_name(day: date) -> str:
    return f"movie_ids_{day:%m_%d_%Y}.json.gz"


def _download(work: FetchContext, url: str, target: Path) -> None:
    def once() -> None:
        with work.web.opened(url, MOST_REDIRECTS) as answer, atomic_file(target) as file:
            for piece in pieces(answer, LARGEST_BYTES):  # as they come: the file stays packed, whatever the server says
                file.write(piece)
            file.flush()
            if not _is_whole(Path(file.name)):
                raise UnreachableError("damaged")

    work.web.retried(once)


def _is_whole(export: Path) -> bool:
    """Whether an export is there, is not empty and can be unpacked to its end."""
    unpacked = 0
    try:
        with gzip.open(export) as file:
            while piece := file.read(1 << 20):
                unpacked += len(piece)
                if unpacked > LARGEST_UNPACKED_BYTES:
                    return False
    except (OSError, EOFError, zlib.error):
        return False
    return unpacked > 0
