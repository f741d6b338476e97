"""`genre-dist fetch` and answers that are none: told, tried again, and nothing is lost once the server is well."""

import errno
import gzip
import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from acquire_server import Handle, serve
from fetch_checks import asked_for, contents, rows_of, rule, start, wait_for_journal

from genre_dist.catalogue import catalogue
from genre_dist.catalogue.sample_films import make_sample
from genre_dist.tmdb import fetch_undated, journal, web

FILM = {"id": 5, "title": "Film", "release_date": "1999-05-05", "genre_ids": [18], "popularity": 1.5, "adult": False}
PAGE: dict[str, Any] = {"page": 1, "results": [FILM], "total_pages": 1, "total_results": 1}
ODD_PAGES = {
    "results null": PAGE | {"results": None},
    "total_pages as text": PAGE | {"total_pages": "1"},
    "an id beyond 64 bits": PAGE | {"results": [FILM | {"id": 2**63 + 5}]},
    "popularity as text": PAGE | {"results": [FILM | {"popularity": "high"}]},
    "popularity NaN": PAGE | {"results": [FILM | {"popularity": float("nan")}]},
    "overview a number": PAGE | {"results": [FILM | {"overview": 5}]},
    "genres null": PAGE | {"results": [FILM | {"genre_ids": None}]},
    "a list": [PAGE],
}


@pytest.mark.parametrize("odd", ODD_PAGES)
def test_an_odd_page_is_tried_again_then_missing_then_fetched_from_a_healthy_server(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, odd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    years = ("--years", "1995-1999", "--size", "none")
    server.control(set={"rules": [rule(r'\.lte": "1999', "json", 10**6, value=ODD_PAGES[odd])]})
    assert fetch(*years) == 1
    told = capsys.readouterr()
    assert "1 pages of films are missing; run again to fetch them" in told.out
    assert not told.err
    assert set(asked_for(server, '"1999').values()) == {web.ATTEMPTS}
    server.control(set={"rules": []})
    assert fetch(*years) == 0
    assert fetch(*years, out="calm") == 0
    assert rows_of(tmp_path / "catalogue") == rows_of(tmp_path / "calm")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 5_000, '{"results": [' + "9" * 5_000 + "]}", "\ud800", "<p>"]
)
def test_text_that_is_no_page_is_told_in_the_journal_without_a_word_of_it(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, text: str
) -> None:
    server.control(set={"rules": [rule("discover", "text", 10**6, text=text)]})
    assert fetch("--years", "1999", "--size", "none") == 1
    (line,) = (tmp_path / "catalogue" / ".fetch" / "journal.jsonl").read_text().splitlines()
    reason = json.loads(line)["reason"]
    assert re.fullmatch(r"wrong answer: results(\.\d+)?|the answer is no JSON object", reason)


def test_a_journal_with_an_id_beyond_64_bits_does_not_hold_the_catalogue_up(
    fetch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch("--years", "1999", "--size", "none", out="calm") == 0
    whole = (tmp_path / "calm" / ".fetch" / "journal.jsonl").read_text().splitlines()
    old = [{name: value for name, value in json.loads(line).items() if name != "crc"} for line in whole]
    old[0]["film"]["tmdb_id"] = 2**63 + 5
    next(line for line in old if "ids" in line)["ids"][0] = 2**63 + 5
    target = tmp_path / "catalogue" / ".fetch" / "journal.jsonl"
    target.parent.mkdir(parents=True)
    target.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert fetch("--years", "1999", "--size", "none") == 0
    assert f"{target}: 2 damaged lines, such as line 1, passed over" in capsys.readouterr().out
    assert rows_of(tmp_path / "catalogue") == rows_of(tmp_path / "calm")


def test_wherever_a_journal_is_damaged_nothing_is_lost(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An import's films too, which only movies.parquet knows."""
    make_sample(10, 0, tmp_path / "catalogue", size=(32, 48))
    assert fetch("--years", "1998-1999", "--with_undated") == 0
    target = tmp_path / "catalogue" / ".fetch" / "journal.jsonl"
    whole, rows = target.read_bytes(), rows_of(tmp_path / "catalogue")
    posters = contents(tmp_path / "catalogue")
    for place in range(0, len(whole), len(whole) // 12):
        damaged = bytearray(whole)
        # a whole line: a half one at the end is what a kill leaves, which is no damage
        damaged[place : place + 300] = random.Random(place).randbytes(299) + b"\n"
        target.write_bytes(damaged)
        assert fetch("--years", "1998-1999", "--with_undated") == 0
        assert "damaged line" in capsys.readouterr().out
        assert rows_of(tmp_path / "catalogue") == rows
        assert contents(tmp_path / "catalogue") == posters


def test_a_damaged_line_about_an_imported_poster_does_not_lose_it(
    fetch: Callable[..., int], server: Handle, tmp_path: Path
) -> None:
    make_sample(10, 0, tmp_path / "catalogue", size=(32, 48))
    assert fetch("--years", "1999") == 0
    rows, target = rows_of(tmp_path / "catalogue"), tmp_path / "catalogue" / ".fetch" / "journal.jsonl"
    target.write_bytes(target.read_bytes().replace(b'{"poster":1,', b'{"poster":"1",'))
    server.control(forget=True)
    assert fetch("--years", "1999") == 0
    assert not asked_for(server, "/t/p/")
    assert rows_of(tmp_path / "catalogue") == rows


def test_genres_that_are_none_end_in_one_line(
    fetch: Callable[..., int], server: Handle, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ({"genres": None}, {"genres": [{"id": "28", "name": "Action"}]}, {}, []):
        server.control(set={"rules": [rule("genre", "json", 10**6, value=value)]})
        assert fetch() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be used (" in line


def test_odd_films_of_the_export_are_missing_and_odd_lines_are_counted(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--with_undated", "--size", "none", "--years", "1990-2009")
    name = f"movie_ids_{datetime.now(UTC).date():%m_%d_%Y}.json.gz"
    assert fetch(*options, out="calm") == 0
    (tmp_path / "catalogue" / ".fetch").mkdir(parents=True)
    lines = [b'{"id":9223372036854775813}', b'{"id":"5"}', b"[" * 100_000, b"null", b'{"id":10}']
    (tmp_path / "catalogue" / ".fetch" / name).write_bytes(gzip.compress(b"\n".join(lines)))
    assert fetch(*options) == 1
    told = capsys.readouterr().out
    assert f"{name}: " in told
    assert "lines name no film, such as line 1; passed over" in told
    server.control(set={"rules": [rule("/3/movie/", "json", 10**6, value={"id": None})]})
    assert fetch(*options) == 1
    assert "films without a date are missing" in capsys.readouterr().out
    server.control(set={"rules": []})
    assert fetch(*options) == 0
    assert rows_of(tmp_path / "catalogue") == rows_of(tmp_path / "calm")


@pytest.mark.parametrize("kind", ["html", "empty", "truncated", "gzip"])
def test_an_export_that_is_damaged_is_fetched_again_and_missing_in_the_end(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.control(set={"rules": [rule("/exports/", kind, 2 if kind == "truncated" else 10**6)]})
    ends = 0 if kind == "truncated" else 1
    assert fetch("--with_undated", "--size", "none", "--years", "1999") == ends
    assert ("no id export" in capsys.readouterr().out) == (ends == 1 and kind != "gzip")
    leftover = [file.name for file in (tmp_path / "catalogue" / ".fetch").iterdir() if file.name.endswith(".tmp")]
    assert not leftover


# ---- pauses and signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["genre", "discover", "/t/p/"])
def test_a_pause_of_an_hour_ends_the_fetch_with_what_is_there(
    fetch: Callable[..., int], server: Handle, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.control(set={"rules": [rule(path, "429", 10**6, seconds=3600)]})
    assert fetch("--years", "1999") == 1
    told = capsys.readouterr().out
    assert re.search(
        r"the server asks to wait 3,600 s \(429\), until \d{4}-\S+ \S+ .*; run the same command to go on", told
    )
    assert bool(rows_of(tmp_path / "catalogue")) == (path == "/t/p/")
    server.control(set={"rules": []})
    assert fetch("--years", "1999") == 0
    assert fetch("--years", "1999", out="calm") == 0
    assert rows_of(tmp_path / "catalogue") == rows_of(tmp_path / "calm")


def test_a_stop_before_the_first_answer_keeps_the_films_that_are_there(
    fetch: Callable[..., int], server: Handle, tmp_path: Path
) -> None:
    make_sample(10, 0, tmp_path / "catalogue", size=(32, 48))
    before = rows_of(tmp_path / "catalogue")
    server.control(set={"rules": [rule("genre", "429", 10**6, seconds=3600)]})
    assert fetch() == 1
    assert rows_of(tmp_path / "catalogue") == before


@pytest.mark.parametrize(("path", "kind"), [("/t/p/", "dribble"), ("/t/p/", "dribble-head"), ("/t/p/", "429")])
def test_one_signal_stops_a_fetch_while_answers_drip_or_a_pause_is_slept(
    server: Handle, tmp_path: Path, path: str, kind: str
) -> None:
    server.control(set={"rules": [rule(path, kind, 10**6, seconds=600)]})
    process = start(server, tmp_path / "out")
    try:
        while not asked_for(server, path):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    assert "stopped before the end; run the same command to go on" in output
    assert rows_of(tmp_path / "out")


def test_two_signals_end_a_fetch_at_once_that_waits_for_a_connection(server: Handle, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        waiting = [socket.socket() for _ in range(3)]  # they fill its queue: who comes later gets no answer
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        process = start(server, tmp_path / "out", "--api_url", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        try:
            wait_for_journal(process, tmp_path / "out", 0)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert process.stderr.readline().startswith("stopping")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=5) == 130
        finally:
            process.kill()
            process.communicate()
            for one in waiting:
                one.close()


# ---- the lock, the disk, the terminal -------------------------------------------------------------------------------


def test_the_lock_keeps_sample_and_fetch_out_of_each_others_catalogue(server: Handle, tmp_path: Path) -> None:
    server.control(set={"delay": 0.05})
    try:
        first = start(server, tmp_path / "catalogue")
        wait_for_journal(first, tmp_path / "catalogue", 1)
        with pytest.raises(ValueError, match=f"being written by process {first.pid} on {os.uname().nodename}"):
            make_sample(10, 0, tmp_path / "catalogue")
    finally:
        server.control(set={"delay": 0.0})
    assert first.wait() == 0


def test_what_a_killed_fetch_left_is_removed_by_the_next(fetch: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "catalogue"
    left = [out / ".movies.parquet.part", out / "posters" / "999" / ".5999.jpg.part"]
    left.append(out / ".fetch" / f"movie_ids_01_01_2026.json.gz.{os.uname().nodename[:64]}-999999999-0123abcd.tmp")
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    assert fetch("--years", "1999") == 0
    assert not [file for file in left if file.exists()]


def full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullAfter:
    """A file on a disk that has room for a few writes and half of another."""

    def __init__(self, file: Any, writes: int) -> None:
        self.file, self.writes = file, writes

    def write(self, data: Any) -> int:
        self.writes -= 1
        if self.writes < 0:
            self.file.write(bytes(data)[: len(data) // 2])
            full()
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("what", ["the journal at once", "the journal", "the export", "movies.parquet"])
def test_a_disk_that_gets_full_is_told_in_one_line_and_the_next_start_goes_on(
    fetch: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--years", "1998-1999", "--with_undated", "--size", "none")
    open_journal = journal.Journal.__init__

    def open_nearly_full(self: journal.Journal, path: Path) -> None:
        open_journal(self, path)
        self.writer = FullAfter(self.writer, 3 if what == "the journal" else 0)  # type: ignore[assignment]

    with monkeypatch.context() as patch:
        if what == "the export":
            patch.setattr(fetch_undated, "chunks", full)
        elif what == "movies.parquet":
            patch.setattr(catalogue.pq.ParquetWriter, "write_table", full)
        else:
            patch.setattr(journal.Journal, "__init__", open_nearly_full)
        assert fetch(*options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device. What is fetched so far is kept; make room and run the same command" in line
    assert fetch(*options) == 0
    assert fetch(*options, out="calm") == 0
    assert rows_of(tmp_path / "catalogue") == rows_of(tmp_path / "calm")


def test_a_place_that_cannot_be_written_is_told_in_one_line(
    fetch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for out in ("file", "file/below"):
        assert fetch(out=out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: cannot write below {tmp_path / out}: ")


def test_control_characters_of_the_api_are_kept_in_the_catalogue_and_never_printed(
    fetch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(films=3, poster_share=0.0) as odd:
        evil = "\x1b]0;owned\x07\n[/red]"
        film = FILM | {"title": f"Film{evil}", "poster_path": f"/{evil}.jpg"}
        details = {name: value for name, value in film.items() if name != "genre_ids"}
        rules = [
            rule("discover", "json", 10**6, value=PAGE | {"results": [film]}),
            rule("genre", "json", 10**6, value={"genres": [{"id": 28, "name": evil}]}),
            rule("/3/movie/", "json", 10**6, value=details | {"id": 10, "genres": [{"id": 999, "name": evil}]}),
        ]
        odd.control(set={"rules": rules})
        urls = ("--api_url", odd.url, "--image_url", odd.url + "/t/p", "--export_url", odd.url + "/p/exports")
        assert fetch("--years", "1999", "--with_undated", *urls) == 1
    told = capsys.readouterr()
    assert all(line.isprintable() for line in (told.out + told.err).splitlines())
    assert "the unknown genre `\\x1b]0;owned\\x07 [/red]`" in told.out
    assert rows_of(tmp_path / "catalogue")[0]["title"] == f"Film{evil}"
