"""The films without a date: those in TMDB's daily id export that no window of release dates lists."""

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
from genre_dist.tmdb.web import FetchError, StoppedError, UnreachableError, chunks

DAYS_OF_EXPORTS = 4  # today's may not exist yet; older ones are of little use
LARGEST_BYTES = 1 << 30  # compressed; TMDB's has some 30 MB
LARGEST_UNPACKED_BYTES = 8 << 30
LONGEST_LINE = 1 << 16


def fetch_undated(context: FetchContext, folder: Path) -> None:
    """Record the films of the daily id export that are on no page: those without a date, requested one by one.

    The export stays in `folder` until all its films are settled, and is read as a stream.
    """
    export = _export(context, folder)
    if export is None:
        return
    ids = array("q", _unsettled(context, export))
    context.tally.start("films of the id export", len(ids))
    complete = True
    for film, answer in context.answers(context.tmdb.movie, ids, context.enough):
        if isinstance(answer, FetchError):
            complete &= _record_missing(context, film, answer)
        else:
            _record_film(context, film, answer)
    if complete and not context.stopping():
        export.unlink()


def _record_missing(context: FetchContext, film: int, failure: FetchError) -> bool:
    """Record a failed film; returns whether the failure is final, as for a film that TMDB has deleted."""
    if str(failure) == "404":
        context.state.record({"passed_over": film, "query": context.options.query(), "reason": "404"})
        context.tally.succeeded()
        return True
    context.tally.failed(failure)
    context.tally.missing[UNDATED] += 1
    context.state.record({"failed": f"film {film}", "reason": str(failure)})
    return False


def _record_film(context: FetchContext, film: int, answer: FilmAnswer) -> None:
    row = film_row(film, answer, context.unknown_genres)
    if _is_wanted(context, row, answer):
        context.state.record(*film_lines(context, [row])[0])
    else:
        reason = "the options leave it out"
        context.state.record({"passed_over": film, "query": context.options.query(), "reason": reason})
    context.tally.succeeded()


def _is_wanted(context: FetchContext, row: dict[str, Any], answer: FilmAnswer) -> bool:
    """Whether a film meets the conditions that `discover` would have checked."""
    options = context.options
    year = row["release_date"][:4]
    return (
        (not options.languages or row["original_language"] in options.languages)
        and (answer.get("vote_count") or 0) >= options.min_votes
        and (bool(row["poster_path"]) or not options.with_poster_only)
        and (not year or int(year) in options.years)
    )


def _unsettled(context: FetchContext, export: Path) -> Iterator[int]:
    """The export's films that are not recorded or need a refresh, in its order."""
    state = context.state
    passed_over = state.passed_over.setdefault(context.options.query(), set())
    for film in _exported_ids(context, export):
        if film in passed_over or state.is_fresh(film):
            continue
        # A refresh updates films with a date through their window.
        if film not in state.films or not state.film(film)["release_date"]:
            yield film


def _exported_ids(context: FetchContext, export: Path) -> Iterator[int]:
    """The ids of a complete export. Lines without an id are noted, and count as missing films."""
    unreadable = LeftOut()
    with gzip.open(export) as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), start=1):
            try:
                yield read_answer(EXPORTED, line)["id"]
            except FetchError:
                unreadable.add("lines name no film", f"line {number:,}")
    context.tally.missing[UNDATED] += unreadable.counts.total()
    context.tally.notes += [f"{export.name}: {lines}; passed over" for lines in unreadable.lines()]


def _export(context: FetchContext, folder: Path) -> Path | None:
    """The newest id export, downloaded unless `folder` has it; None, with a noted failure, if there is none."""
    failure = FetchError("404")
    for days in range(DAYS_OF_EXPORTS):
        day = datetime.now(UTC).date() - timedelta(days=days)
        target = folder / _export_name(day)
        try:
            if not _is_complete(target):
                _download(context, f"{context.options.export_url.rstrip('/')}/{target.name}", target)
            for older in set(folder.glob("movie_ids_*.json.gz")) - {target}:
                older.unlink()
            return target
        except StoppedError:
            return None
        except FetchError as error:
            failure = error
            if str(error) not in ("403", "404"):  # the file server's answers for missing files
                break
    context.tally.failed(failure, 0)
    context.tally.missing[PAGES] += 1
    url = context.options.export_url
    context.tally.notes.append(f"no id export of the last {DAYS_OF_EXPORTS} days at {url}: {failure}")
    return None


def _export_name(day: date) -> str:
    return f"movie_ids_{day:%m_%d_%Y}.json.gz"


def _download(context: FetchContext, url: str, target: Path) -> None:
    def once() -> None:
        with context.web.opened(url, MOST_REDIRECTS) as answer, atomic_file(target) as file:
            for chunk in chunks(answer, LARGEST_BYTES):  # the file stays compressed, whatever the headers say
                file.write(chunk)
            file.flush()
            if not _is_complete(Path(file.name)):
                raise UnreachableError("damaged")

    context.web.retried(once)


def _is_complete(export: Path) -> bool:
    """Whether an export exists, is not empty and can be decompressed to its end."""
    unpacked = 0
    try:
        with gzip.open(export) as file:
            while chunk := file.read(1 << 20):
                unpacked += len(chunk)
                if unpacked > LARGEST_UNPACKED_BYTES:
                    return False
    except (OSError, EOFError, zlib.error):
        return False
    return unpacked > 0
