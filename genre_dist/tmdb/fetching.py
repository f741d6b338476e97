"""Fetch: TMDB's films and posters into a catalogue, stopped and continued at any point.

Everything fetched goes into a journal (CATALOGUE/.fetch/journal.jsonl) as it comes; movies.parquet is written from it
at the end, or when the process is asked to stop. The journal stays: it is what makes the next fetch an addition.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

from genre_dist.catalogue.catalogue import CatalogueWriter, movies_file, read_rows, remove_partial_files
from genre_dist.lock import one_writer
from genre_dist.printable import printable
from genre_dist.tmdb.api import Tmdb, genre_differences
from genre_dist.tmdb.fetch_films import fetch_films
from genre_dist.tmdb.fetch_posters import fetch_posters
from genre_dist.tmdb.fetch_state import NO_POSTERS, FetchContext, FetchOptions, Refresh, State, now
from genre_dist.tmdb.fetch_undated import fetch_undated
from genre_dist.tmdb.journal import Journal
from genre_dist.tmdb.signals import stopping_on_signals
from genre_dist.tmdb.tally import Tally
from genre_dist.tmdb.web import FetchError, StoppedError, Web

POSTER_COLUMNS = ("poster_status", "poster_bytes", "poster_sha256")
NOT_YET = "failed: not fetched yet"  # the fetch was stopped before it


class FetchReport(NamedTuple):
    """What a fetch left in the catalogue, and what it could not get."""

    films: int
    posters: Counter[str]
    """Poster status -> films."""
    tally: Tally
    unknown_genres: Counter[str]
    stopped: str
    """Why the fetch ended before its end; '' if it did not."""

    def failed_posters(self) -> Counter[str]:
        """Reason -> films whose poster could not be had, in this fetch or an earlier one."""
        return Counter({status: count for status, count in self.posters.items() if status not in ("ok", "none")})

    def is_complete(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return not (self.tally.missing.total() or self.failed_posters() or self.stopped)


def fetch(options: FetchOptions) -> FetchReport:
    """Fetch films and posters into the catalogue `options.out`, going on where an earlier fetch stopped.

    Films already in movies.parquet are kept, whoever wrote them. SIGINT and SIGTERM end the fetch early with a whole
    catalogue, the second of them at once. Raises ValueError for what the user must change (KeyRefusedError and
    BusyError among them), OSError when the disk is full.
    """
    web = Web(options.rate, options.concurrency)
    try:
        with stopping_on_signals(web.stop), one_writer(options.out):
            remove_partial_files(options.out)
            return _fetch(options, web)
    except OSError as error:
        raise OSError(
            f"cannot write below {options.out}: {error.strerror or error}. What is fetched so far is kept; "
            "make room and run the same command to go on"
        ) from error


def _fetch(options: FetchOptions, web: Web) -> FetchReport:
    tally = Tally()
    with Journal(options.out / ".fetch" / "journal.jsonl") as journal, tally.progress:
        state = State(journal)
        for lines in state.damaged.lines():
            tally.notes.append(f"{journal.path}: {lines}, passed over; what they said is fetched again")
        _adopt(state, options)
        with ThreadPoolExecutor(options.concurrency) as pool:
            work = FetchContext(options, state, web, Tmdb(web, options.key, options.api_url), pool, tally)
            try:
                _fetch_all(work)
            except StoppedError:
                pass
            finally:
                web.stop("")  # nothing is under way but after an error; then threads would go on while the pool waits
        stopped = web.why_stopped or ("the server is out of reach before the end" if tally.hopeless() else "")
        posters = write_catalogue(state, options)
    return FetchReport(len(state.films), posters, tally, work.unknown_genres, stopped)


def _fetch_all(work: FetchContext) -> None:
    """Everything that needs the network. Raises StoppedError if it is to stop before the first answer."""
    options, state, tally = work.options, work.state, work.tally
    tally.notes += _check_genres(work.tmdb, options)
    if options.refresh and not _covers(options, state.refresh):
        state.record({"refresh": options.years, "query": options.query(), "at": now()})
    fetch_films(work)
    if options.with_undated and not work.stopping():
        fetch_undated(work, options.out / ".fetch")
    whole = not (work.stopping() or tally.missing.total())
    if whole and _covers(options, state.refresh):
        state.record({"refreshed": now()})
    if options.size != NO_POSTERS and not work.stopping():
        fetch_posters(work)


def summary(report: FetchReport, options: FetchOptions) -> list[str]:
    """The report in lines for the user."""
    lines = [f"{options.out}: {report.films:,} films, {report.posters['ok']:,} with a poster"]
    lines += [f"  {printable(note)}" for note in report.tally.notes]
    unknown = report.unknown_genres.most_common(10)
    lines += [f"  {n:,} times the unknown genre `{printable(name)}`, dropped" for name, n in unknown]
    missing = report.tally.missing.items()
    lines += [f"  {n:,} {what} are missing; run again to fetch them" for what, n in missing if n]
    lines += [f"  {n:,} posters {printable(reason)}" for reason, n in report.failed_posters().most_common(10)]
    if any(status != NOT_YET for status in report.failed_posters()):
        lines.append("  run again with --retry_failed to try these posters again")
    if report.stopped:
        lines.append(f"  {report.stopped}; run the same command to go on")
    elif not report.films:
        lines.append("  no film fits the options")
    return lines


def _covers(options: FetchOptions, refresh: Refresh | None) -> bool:
    """Whether a refresh is under way that these options bring to its end."""
    return refresh is not None and refresh.query == options.query() and refresh.years <= set(options.years)


def _check_genres(tmdb: Tmdb, options: FetchOptions) -> list[str]:
    """Warnings about genres that are not ours. The first request of all: ValueError if the API cannot be reached."""
    try:
        differences = genre_differences(tmdb.genres())
    except StoppedError:
        raise
    except FetchError as failure:
        raise ValueError(
            f"{options.api_url} cannot be used ({failure}); check --api_url and the network, or try again later"
        ) from None
    return [f"warning: {difference}; films keep only the genres known here" for difference in differences]


def _adopt(state: State, options: FetchOptions) -> None:
    """Take what the journal lacks of movies.parquet into it: an import's films, or those of lost or damaged lines."""
    if not movies_file(options.out).exists():
        return
    for row in read_rows(options.out):
        film = row["tmdb_id"]
        status, size, sha256 = (row.pop(name) for name in POSTER_COLUMNS)
        lines: list[dict[str, Any]] = []
        if film not in state.films:
            fetched = row["fetched_at"]
            lines.append({"film": row | {"fetched_at": fetched.isoformat() if fetched else None}})
        if film not in state.posters and status not in (None, "none", NOT_YET):
            path = row["poster_path"] or ""
            line = {"poster": film, "path": path, "status": status, "bytes": size or 0, "sha256": sha256 or ""}
            lines.append(line)
        if lines:
            state.record(*lines)


def write_catalogue(state: State, options: FetchOptions) -> Counter[str]:
    """Write movies.parquet, films ascending by id; poster status -> films."""
    statuses: Counter[str] = Counter()
    with CatalogueWriter(options.out) as writer:
        for film in state.films:
            row = state.film(film)
            fetched = row["fetched_at"] and datetime.fromisoformat(row["fetched_at"])
            path = row["poster_path"] or ""
            poster = state.poster(film, path)
            if poster is None:
                untried = "none" if not path or options.size == NO_POSTERS else NOT_YET
                poster = {"status": untried, "bytes": 0, "sha256": ""}
            columns = {f"poster_{name}": poster[name] for name in ("status", "bytes", "sha256")}
            writer.add({**row, **columns, "fetched_at": fetched})
            statuses[poster["status"]] += 1
    return statuses
