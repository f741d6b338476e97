"""`genre-dist fetch` against a server on loopback that behaves, and misbehaves, like TMDB."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from acquire_server import KEY, TOKEN, Handle, most_in_a_second, serve

from genre_dist.acquire import fetch_films, fetch_posters, web
from genre_dist.acquire.catalogue import movies_file, poster_file, read_rows
from genre_dist.acquire.sample import make_sample
from genre_dist.cli import main

FETCH = [sys.executable, "-m", "genre_dist.cli"]
KINDS = ["429", "429-date", "500", "503", "cut", "truncated", "gif", "html", "empty", "slow", "dribble"]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Handle]:
    with serve(films=240, poster_share=0.8, undated_share=0.1) as server:
        yield server


@pytest.fixture
def server(shared_server: Handle) -> Handle:
    """A well-behaved server of 240 films, its record empty."""
    shared_server.control(set={"rules": [], "max_pages": 500, "swap_once": False}, forget=True)
    return shared_server


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and waits that a test can afford."""
    monkeypatch.setenv("TMDB_API_KEY", KEY)
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", (2.0, 0.5))


@pytest.fixture
def fetch(server: Handle, tmp_path: Path) -> Callable[..., int]:
    """Run the verb in this process on tmp_path/catalogue; its exit code."""

    def run(*options: str, out: str = "catalogue") -> int:
        return main([*server.arguments(tmp_path / out), "--years", "1990-2009", "--rate", "0", *options])

    return run


def rows_of(catalogue: Path) -> list[dict[str, Any]]:
    """The catalogue without the times, which differ from run to run."""
    return [row | {"fetched_at": None} for row in read_rows(catalogue)]


def contents(catalogue: Path) -> dict[str, bytes]:
    return {str(file.relative_to(catalogue)): file.read_bytes() for file in (catalogue / "posters").rglob("*.jpg")}


def asked_for(server: Handle, pattern: str, forget: bool = False) -> dict[str, int]:
    return {path: n for path, n in server.control(forget=forget)["paths"].items() if re.search(pattern, path)}


def rule(path: str, do: str, times: int, **more: Any) -> dict[str, Any]:
    return {"path": path, "do": do, "times": times, "seconds": 1} | more


# ---- what is fetched ------------------------------------------------------------------------------------------------


def test_a_catalogue_has_every_dated_film_and_poster(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch() == 0
    rows = list(read_rows(tmp_path / "catalogue"))
    assert 200 < len(rows) < 240
    assert [row["tmdb_id"] for row in rows] == sorted({row["tmdb_id"] for row in rows})
    first = rows[0]
    assert first["title"] == f"Film {first['tmdb_id']} — Amélie"
    assert first["overview"].startswith("Overview of film")
    assert first["fetched_at"] is not None
    for row in rows:
        assert (row["poster_status"] == "ok") == bool(row["poster_path"])
        if row["poster_path"]:
            assert poster_file(tmp_path / "catalogue", row["tmdb_id"]).stat().st_size == row["poster_bytes"]
    assert server.control()["connections"] <= 20  # 16 threads that keep theirs, and this test
    assert set(server.control()["agents"]) <= {"genre_dist/0.1.0", "Python-urllib/3.11"}
    output = capsys.readouterr().out
    assert f"{len(rows):,} films" in output
    assert "next: genre-dist pack" in output


def test_a_second_run_asks_for_nothing_but_the_genres(
    fetch: Callable[..., int], server: Handle, tmp_path: Path
) -> None:
    assert fetch() == 0
    before = rows_of(tmp_path / "catalogue")
    server.control(forget=True)
    assert fetch() == 0
    assert list(asked_for(server, "")) == ["/3/genre/movie/list"]
    assert rows_of(tmp_path / "catalogue") == before


def test_conditions_narrow_the_films(fetch: Callable[..., int], tmp_path: Path) -> None:
    assert fetch("--languages", "fr,de", "--min_votes", "30", "--with_poster_only", "--size", "none") == 0
    rows = rows_of(tmp_path / "catalogue")
    assert {row["original_language"] for row in rows} == {"fr", "de"}
    assert all(row["poster_path"] for row in rows)
    assert {row["poster_status"] for row in rows} == {"none"}
    narrow = len(rows)
    assert fetch("--size", "none") == 0
    assert len(rows_of(tmp_path / "catalogue")) > narrow
    assert fetch() == 0  # and the posters that were left out
    assert {row["poster_status"] for row in rows_of(tmp_path / "catalogue") if row["poster_path"]} == {"ok"}


def test_years_and_limit_add_up(fetch: Callable[..., int], server: Handle, tmp_path: Path) -> None:
    assert fetch("--years", "1999", "--limit", "15") == 0
    some = rows_of(tmp_path / "catalogue")
    assert len(some) == 15
    assert {row["release_date"][:4] for row in some} == {"1999"}
    assert fetch("--years", "1999", "--limit", "15", out="again") == 0
    assert rows_of(tmp_path / "again") == some
    assert fetch("--limit", "60") == 0
    assert len(rows_of(tmp_path / "catalogue")) == 60
    assert fetch() == 0
    assert fetch(out="at_once") == 0
    assert rows_of(tmp_path / "catalogue") == rows_of(tmp_path / "at_once")
    assert max(asked_for(server, "/t/p/").values()) <= 3  # once for each of the three catalogues


def test_films_without_a_date_come_through_the_export(
    fetch: Callable[..., int], server: Handle, tmp_path: Path
) -> None:
    assert fetch("--with_undated") == 0
    rows = rows_of(tmp_path / "catalogue")
    assert len(rows) == 240
    undated = [row for row in rows if not row["release_date"]]
    assert {row["imdb_id"] for row in undated} == {f"tt{row['tmdb_id']:07d}" for row in undated}
    assert len(asked_for(server, "/3/movie/")) == len(undated) + 1  # and one that TMDB has deleted since
    assert fetch("--with_undated") == 0
    assert max(asked_for(server, "/3/movie/").values()) == 1
    assert not list((tmp_path / "catalogue" / ".fetch").glob("movie_ids*"))


def test_films_that_are_there_are_kept(fetch: Callable[..., int], tmp_path: Path) -> None:
    make_sample(30, 0, tmp_path / "catalogue")
    sample = {row["tmdb_id"]: row for row in read_rows(tmp_path / "catalogue")}
    assert fetch() == 0
    fetched = {row["tmdb_id"]: row for row in read_rows(tmp_path / "catalogue")}
    kept = [film for film in sample if not fetched[film]["poster_path"] or sample[film]["poster_path"]]
    assert kept
    assert all(fetched[film] == sample[film] for film in kept)
    assert len(fetched) > 200


def test_a_window_that_overflows_is_halved_down_to_a_day(
    fetch: Callable[..., int],
    server: Handle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fetch("--size", "none", out="whole") == 0
    whole = rows_of(tmp_path / "whole")
    monkeypatch.setattr(fetch_films, "MOST_PAGES", 1)
    monkeypatch.setattr(fetch_films, "MOST_FILMS", 20)
    server.control(set={"max_pages": 1})
    assert fetch("--size", "none") == 0
    assert rows_of(tmp_path / "catalogue") == whole
    day = {str(row["tmdb_id"]): {"release_date": "1995-05-05"} for row in whole[:50]}
    before = {str(row["tmdb_id"]): {"release_date": row["release_date"]} for row in whole[:50]}
    server.control(films=day)
    try:
        assert fetch("--size", "none", "--years", "1995", out="crowded") == 0
    finally:
        server.control(films=before)
    assert "1995-05-05..1995-05-05: 20 of 50 films; the API lists no more than 20" in capsys.readouterr().out


def test_a_film_that_moves_between_pages_is_not_lost(fetch: Callable[..., int], server: Handle, tmp_path: Path) -> None:
    assert fetch("--size", "none", "--years", "1999", out="still") == 0
    server.control(set={"swap_once": True})
    assert fetch("--size", "none", "--years", "1999") == 0
    assert rows_of(tmp_path / "catalogue") == rows_of(tmp_path / "still")


def test_refresh_brings_changes_and_only_changed_posters(
    fetch: Callable[..., int], server: Handle, tmp_path: Path
) -> None:
    assert fetch("--with_undated") == 0
    rows = rows_of(tmp_path / "catalogue")
    film = next(row for row in rows if row["poster_path"] and row["release_date"][:4] == "1999")["tmdb_id"]
    other = next(row for row in rows if row["release_date"][:4] == "1999" and row["tmdb_id"] != film)["tmdb_id"]
    server.control(films={film: {"poster_path": f"/new-{film}.jpg"}, other: {"title": "Renamed"}}, forget=True)
    try:
        assert fetch("--refresh", "--years", "1999") == 0
        changed = {row["tmdb_id"]: row for row in rows_of(tmp_path / "catalogue")}
        assert list(asked_for(server, "/t/p/")) == [f"/t/p/w342/new-{film}.jpg"]
        assert changed[other]["title"] == "Renamed"
        assert f"new-{film}.jpg".encode() in poster_file(tmp_path / "catalogue", film).read_bytes()
        assert [row for row in rows if row["tmdb_id"] not in (film, other)] == [
            row for row in changed.values() if row["tmdb_id"] not in (film, other)
        ]
        server.control(forget=True)
        assert fetch() == 0
        assert list(asked_for(server, "")) == ["/3/genre/movie/list"]
    finally:
        back = {film: {"poster_path": f"/poster-{film}.jpg"}, other: {"title": f"Film {other} — Amélie"}}
        server.control(films=back)


def test_a_refresh_cut_short_is_finished_by_the_next_run(
    fetch: Callable[..., int], server: Handle, tmp_path: Path
) -> None:
    assert fetch("--size", "none") == 0
    film = next(row for row in rows_of(tmp_path / "catalogue") if row["release_date"][:4] == "1999")
    renamed = {film["tmdb_id"]: {"title": "Renamed"}}
    server.control(films=renamed, set={"rules": [rule(r"\.lte\": \"1999", "500", 10**6)]}, forget=True)
    try:
        assert fetch("--size", "none", "--refresh") == 1
        assert film in rows_of(tmp_path / "catalogue")
        years = len(asked_for(server, "discover"))
        server.control(set={"rules": []}, forget=True)
        assert fetch("--size", "none") == 0
        assert 0 < len(asked_for(server, "discover")) < years / 2
        assert film | {"title": "Renamed"} in rows_of(tmp_path / "catalogue")
    finally:
        server.control(films={film["tmdb_id"]: {"title": film["title"]}})


def test_genres_that_differ_are_named(
    fetch: Callable[..., int], server: Handle, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(films=5) as strange:
        strange.control(set={"genres": [{"id": 28, "name": "Azione"}]})
        assert fetch("--api_url", strange.url, "--size", "none") == 0
    assert "warning: genre 28: 'Action' here, 'Azione' in the API" in capsys.readouterr().out


# ---- misbehaviour ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_misbehaviour_that_passes_leaves_no_trace(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_posters, "LONGEST_SECONDS", 0.3)
    path = r"page\": \"2|/w342/poster-1\d\d\." if kind not in ("gif", "dribble", "truncated") else r"/poster-1\d\d\."
    each = not kind.startswith("429")  # a pause for every path would take a minute
    server.control(set={"rules": [rule(path, kind, 2 if each else 3, each=each)]})
    assert fetch("--years", "1990-1999") == 0
    assert max(asked_for(server, "", forget=True).values()) > 1
    server.control(set={"rules": []})
    assert fetch("--years", "1990-1999", out="calm") == 0
    assert rows_of(tmp_path / "catalogue") == rows_of(tmp_path / "calm")
    assert contents(tmp_path / "catalogue") == contents(tmp_path / "calm")


def test_retry_after_stops_everybody(fetch: Callable[..., int], server: Handle) -> None:
    server.control(set={"rules": [rule("/poster-", "429", 1, each=False, seconds=2)]})
    assert fetch("--years", "1999") == 0
    times = server.control()["times"]
    assert max(later - sooner for sooner, later in pairwise(times)) >= 1.8


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("404", "failed: 404"),
        ("503", "failed: 503"),
        ("html", "failed: HTML instead of an image"),
        ("gif", "failed: no JPEG, PNG, WEBP image"),
        ("empty", "failed: empty"),
        ("truncated", "failed: "),
        ("cut", "failed: connection cut"),
    ],
)
def test_a_poster_that_keeps_failing_is_recorded_and_retried_on_demand(
    fetch: Callable[..., int],
    server: Handle,
    tmp_path: Path,
    kind: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.control(set={"rules": [rule("/poster-1[0-4][0-9].jpg", kind, 10**6)]})
    assert fetch("--years", "1990-1999") == 1
    rows = rows_of(tmp_path / "catalogue")
    failed = [row for row in rows if row["poster_status"].startswith("failed")]
    assert failed
    assert all(row["poster_status"].startswith(reason) for row in failed)
    assert not any(poster_file(tmp_path / "catalogue", row["tmdb_id"]).exists() for row in failed)
    attempts = asked_for(server, "/poster-1[0-4][0-9].jpg")
    assert set(attempts.values()) == {1 if kind == "404" else web.ATTEMPTS}
    assert "--retry_failed" in capsys.readouterr().out
    server.control(set={"rules": []}, forget=True)
    assert fetch("--years", "1990-1999") == 1
    assert not asked_for(server, "/t/p/")
    assert fetch("--years", "1990-1999", "--retry_failed") == 0
    assert len(asked_for(server, "/t/p/")) == len(failed)
    assert all(row["poster_status"] in ("ok", "none") for row in rows_of(tmp_path / "catalogue"))


def test_pages_that_keep_failing_are_missing_until_the_next_run(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.control(set={"rules": [rule(r"page\": \"1\".*1999-01-01", "500", 10**6)]})
    assert fetch("--size", "none") == 1
    assert "1 pages of films are missing" in capsys.readouterr().out
    assert not any(row["release_date"].startswith("1999") for row in rows_of(tmp_path / "catalogue"))
    journal = (tmp_path / "catalogue" / ".fetch" / "journal.jsonl").read_text()
    assert '"failed":"all,votes>=0 1999-01-01..1999-12-31, page 1","reason":"500"' in journal
    server.control(set={"rules": []})
    assert fetch("--size", "none") == 0
    assert any(row["release_date"].startswith("1999") for row in rows_of(tmp_path / "catalogue"))


def test_a_server_out_of_reach_ends_the_fetch_early(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.control(set={"rules": [rule("/t/p/", "cut", 10**6)]})
    assert fetch() == 1
    assert "the server is out of reach before the end" in capsys.readouterr().out
    server.control(set={"rules": []})
    assert fetch("--retry_failed") == 0


def test_a_poster_lost_from_the_disk_is_fetched_again(
    fetch: Callable[..., int], server: Handle, tmp_path: Path
) -> None:
    assert fetch("--years", "1999") == 0
    before = contents(tmp_path / "catalogue")
    lost, cut, *_ = sorted((tmp_path / "catalogue" / "posters").rglob("*.jpg"))
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    server.control(forget=True)
    assert fetch("--years", "1999") == 0
    assert len(asked_for(server, "/t/p/")) == 2
    assert contents(tmp_path / "catalogue") == before


# ---- mistakes and secrets -------------------------------------------------------------------------------------------


def test_mistakes_of_the_user_are_told_in_one_line(
    fetch: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TMDB_API_KEY")
    (tmp_path / "wrong").write_text("f" * 32)
    (tmp_path / "two words").write_text(f"key {KEY}")
    wrong = ("--key_file", str(tmp_path / "wrong"))
    for options, words in [
        ((), "https://www.themoviedb.org/settings/api"),
        (("--key_file", str(tmp_path / "absent")), "absent"),
        (("--key_file", str(tmp_path / "two words")), "more than a key"),
        (wrong, "TMDB refused the key (401)"),
        ((*wrong, "--years", "90s"), "--years takes"),
        ((*wrong, "--limit", "0"), "--limit must be 1 or more"),
        ((*wrong, "--languages", "english"), "codes of two letters"),
        ((*wrong, "--api_url", "http://127.0.0.1:9"), "http://127.0.0.1:9 cannot be used"),
    ]:
        assert fetch(*options) == 2, options
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1, error
        assert words in error[0]
        assert KEY not in error[0]
        assert "f" * 32 not in error[0]


@pytest.mark.parametrize("key", [KEY, TOKEN])
def test_the_key_is_nowhere(server: Handle, tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_text(key + "\n")
    rules = [
        rule(r"page\": \"1", "500", 1),
        rule("/3/movie/1", "cut", 10**6),
        rule("/poster-1[0-3]", "429", 1, seconds=0),
    ]
    server.control(set={"rules": rules})
    command = [*server.arguments(tmp_path / "out"), "--years", "1995-1999", "--rate", "0", "--with_undated"]
    loud = "import logging, sys; logging.basicConfig(level=logging.DEBUG); from genre_dist import cli; "
    loud += "from genre_dist.acquire import web; web.BACKOFF_SECONDS = 0.01; sys.exit(cli.main(sys.argv[1:]))"
    environment = {name: value for name, value in os.environ.items() if name != "TMDB_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-c", loud, *command, "--key_file", str(tmp_path / "key")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "films without a date are missing" in done.stdout
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) > 20
    assert key not in done.stdout + done.stderr
    assert not any(key.encode() in file.read_bytes() for file in files)


# ---- stopping -------------------------------------------------------------------------------------------------------


def start(server: Handle, out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [*FETCH, *server.arguments(out), "--years", "1985-2012", "--rate", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_journal(process: "subprocess.Popen[str]", out: Path, size: int) -> None:
    journal = out / ".fetch" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size >= size):
        time.sleep(0.002)


def recorded(out: Path) -> set[str]:
    """The requests whose results are in the journal, as the server names them."""
    journal = out / ".fetch" / "journal.jsonl"
    requests = set()
    for text in journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []:
        line = json.loads(text)
        if "page" in line:
            first, last = line["of"].split()[1].split("..")
            dates = {"primary_release_date.gte": first, "primary_release_date.lte": last}
            query = dates | {"page": str(line["page"]), "sort_by": "primary_release_date.asc"}
            requests.add(f"/3/discover/movie?{json.dumps(query, sort_keys=True)}")
        elif "poster" in line:
            requests.add(f"/t/p/w342{line['path']}")
        elif "film" in line and line["film"]["imdb_id"]:
            requests.add(f"/3/movie/{line['film']['tmdb_id']}")
    return requests


def test_killed_ten_times_at_20_000_films_nothing_is_lost_or_fetched_twice(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    partial = movies_file(killed).with_name(".movies.parquet.part")
    with serve(films=20_000, max_posters=1_000, crowded=0.6, undated_share=0.01) as server:
        assert start(server, whole, "--with_undated").wait() == 0
        once = server.control(forget=True)["paths"]
        assert set(once.values()) == {1}
        assert sum("1999" in path and "discover" in path for path in once) > 600  # more than a window may have
        assert recorded(whole) <= set(once)
        journal = (whole / ".fetch" / "journal.jsonl").read_bytes()
        posters = journal.index(b'{"poster":')
        rng = random.Random(0)
        # Five while films are fetched, four while posters are, though those lines are few; the last while
        # movies.parquet is written, if it is caught.
        moments = [rng.randrange(posters) for _ in range(5)] + [rng.randrange(posters, len(journal)) for _ in range(4)]
        ends: list[int] = []
        for size in [*sorted(moments), None, None]:
            done_before = recorded(killed)
            process = start(server, killed, "--with_undated")
            if size is not None:
                wait_for_journal(process, killed, size)
            elif len(ends) == 9:
                while process.poll() is None and not partial.exists():
                    time.sleep(0.001)
            if len(ends) < 10:
                process.kill()
            ends.append(process.wait())
            assert not done_before & set(server.control(forget=True)["paths"])
    assert ends.count(-signal.SIGKILL) >= 9
    assert ends[-1] == 0
    assert recorded(killed) == recorded(whole)
    assert rows_of(killed) == rows_of(whole)
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_whole_catalogue(server: Handle, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    server.control(set={"delay": 0.02})
    try:
        process = start(server, out)
        wait_for_journal(process, out, 20_000)
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    finally:
        server.control(set={"delay": 0.0})
    assert process.returncode == 1
    assert "stopped before the end; run the same command to go on" in output
    assert "stopping: the catalogue is being written" in errors
    stopped = rows_of(out)
    assert stopped
    assert start(server, out).wait() == 0
    assert len(rows_of(out)) >= len(stopped)
    assert {row["poster_status"] for row in rows_of(out)} == {"ok", "none"}


def test_the_rate_is_kept_as_the_server_sees_it(fetch: Callable[..., int], server: Handle) -> None:
    assert fetch("--years", "1990-1999", "--rate", "60") == 0
    times = server.control()["times"]
    assert most_in_a_second(times) <= 61  # one may be held up on its way by more than the limiter allows for
    assert len(times) > 100
    assert len(times) / (times[-1] - times[0]) > 50


def test_a_full_disk_is_told_and_what_was_fetched_is_kept(
    fetch: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fetch_posters, "write_poster", full)
        assert fetch("--years", "1999") == 2
    assert "No space left on device. What is fetched so far is kept; make room" in capsys.readouterr().err
    assert fetch("--years", "1999") == 0


def test_two_fetches_into_one_catalogue_are_refused(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.control(set={"delay": 0.05})
    try:
        first = start(server, tmp_path / "catalogue")
        wait_for_journal(first, tmp_path / "catalogue", 1)
        assert fetch() == 2
        assert "another fetch is writing" in capsys.readouterr().err
    finally:
        server.control(set={"delay": 0.0})
    assert first.wait() == 0


def test_the_journal_is_plain_json_lines(fetch: Callable[..., int], tmp_path: Path) -> None:
    assert fetch("--years", "1999") == 0
    lines = (tmp_path / "catalogue" / ".fetch" / "journal.jsonl").read_text().splitlines()
    kinds = {next(iter(json.loads(line))) for line in lines}
    assert kinds == {"film", "page", "window", "poster"}
