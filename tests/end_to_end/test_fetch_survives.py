"""`genre-dist fetch` when the server misbehaves, and when it is stopped or killed."""

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from acquire_server import Handle, most_in_a_second, serve
from fetch_checks import asked_for, contents, rows_of, rule, start, wait_for_journal

from genre_dist.catalogue.catalogue import poster_file
from genre_dist.tmdb import deadline, fetch_posters, web

KINDS = ["429", "429-date", "500", "503", "cut", "truncated", "gif", "html", "empty", "slow", "dribble"]


@pytest.mark.parametrize("kind", KINDS)
def test_misbehaviour_that_passes_leaves_no_trace(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "ANSWER_SECONDS", 0.5)
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
                while process.poll() is None and not list(killed.glob("movies.parquet.*.tmp")):
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


def test_requests_go_through_the_limiter(fetch: Callable[..., int], server: Handle) -> None:
    """How exactly the rate is kept is for the limiter's own test and benchmarks/fetch.py; without it: hundreds."""
    assert fetch("--years", "1990-1999", "--rate", "60") == 0
    times = server.control()["times"]
    assert len(times) > 100
    assert most_in_a_second(times) <= 90


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
        assert f"is being written by process {first.pid} on {os.uname().nodename}" in capsys.readouterr().err
    finally:
        server.control(set={"delay": 0.0})
    assert first.wait() == 0


def test_the_journal_is_plain_json_lines(fetch: Callable[..., int], tmp_path: Path) -> None:
    assert fetch("--years", "1999") == 0
    lines = (tmp_path / "catalogue" / ".fetch" / "journal.jsonl").read_text().splitlines()
    kinds = {next(iter(json.loads(line))) for line in lines}
    assert kinds == {"film", "page", "window", "poster"}
