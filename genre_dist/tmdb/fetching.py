"""Fetch: TMDB's films and posters into a catalogue, resumable at any point.

Each result goes into a journal (CATALOGUE/.fetch/journal.jsonl) when it arrives; movies.parquet is written from it at
the end, or when the process is asked to stop. The journal stays, so that the next fetch only adds to it.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

from genre_dist.catalogue.catalogue import CatalogueWriter, movies_file, read_rows, remove_partial_files, samples_file
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
NOT_YET = "failed: not fetched yet"  # status of a poster that a stopped fetch did not reach


class FetchReport(NamedTuple):
    """Counts of the catalogue after a fetch, and of its failures."""

    films: int
    posters: Counter[str]
    """Poster status -> films."""
    tally: Tally
    unknown_genres: Counter[str]
    stopped: str
    """The reason of an early end; '' if the fetch ran to its end."""

    def failed_posters(self) -> Counter[str]:
        """Status -> films whose poster failed, in this fetch or an earlier one."""
        return Counter({status: count for status, count in self.posters.items() if status not in ("ok", "none")})

    def is_complete(self) -> bool:
        """Whether the fetch got everything it was asked for."""
        return not (self.tally.missing.total() or self.failed_posters() or self.stopped)


def fetch(options: FetchOptions) -> FetchReport:
    """Fetch films and posters into the catalogue `options.out`, resuming an earlier fetch.

    Films already in movies.parquet are kept, whoever wrote them. The first SIGINT or SIGTERM ends the fetch early with
    a complete catalogue, the second ends it at once. Raises ValueError for errors that the user can mend
    (KeyRefusedError and BusyError among them), OSError when the disk is full.
    """
    web = Web(options.rate, options.concurrency)
    try:
        with stopping_on_signals(web.stop), one_writer(options.out):
            if samples_file(options.out).exists():
                raise ValueError(f"{options.out} holds the catalogue of another data set; give another --out")
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
            context = FetchContext(options, state, web, Tmdb(web, options.key, options.api_url), pool, tally)
            try:
                _fetch_all(context)
            except StoppedError:
                pass
            finally:
                web.stop("")  # after an error: else threads would go on while the pool waits for them
        stopped = web.why_stopped or ("the server is out of reach before the end" if tally.hopeless() else "")
        posters = write_catalogue(state, options)
    return FetchReport(len(state.films), posters, tally, context.unknown_genres, stopped)


def _fetch_all(context: FetchContext) -> None:
    """Do everything that needs the network. Raises StoppedError if the fetch stops before the first answer."""
    options, state, tally = context.options, context.state, context.tally
    tally.notes += _check_genres(context.tmdb, options)
    if options.refresh and not _covers(options, state.refresh):
        state.record({"refresh": options.years, "query": options.query(), "at": now()})
    fetch_films(context)
    if options.with_undated and not context.stopping():
        fetch_undated(context, options.out / ".fetch")
    complete = not (context.stopping() or tally.missing.total())
    if complete and _covers(options, state.refresh):
        state.record({"refreshed": now()})
    if options.size != NO_POSTERS and not context.stopping():
        fetch_posters(context)


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
    """Whether these options complete the unfinished refresh."""
    return refresh is not None and refresh.query == options.query() and refresh.years <= set(options.years)


def _check_genres(tmdb: Tmdb, options: FetchOptions) -> list[str]:
    """Warnings about genres that differ here. As this is the first request, an unreachable API raises ValueError."""
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
    """Record films of movies.parquet that the journal lacks: an import's films, or those of lost or damaged lines."""
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
    """Write movies.parquet, films ascending by id; returns poster status -> films."""
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
