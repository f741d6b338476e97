"""`genre-dist fetch` against a server that behaves like TMDB: what it fetches, and what it says."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from acquire_server import KEY, TOKEN, Handle, serve
from fetch_checks import asked_for, rows_of, rule

from genre_dist import __version__
from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.catalogue.sample_films import make_sample
from genre_dist.tmdb import fetch_films, fetch_state


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
    assert server.control()["agents"] == [f"genre_dist/{__version__}"]
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
    monkeypatch.setattr(fetch_state, "MOST_PAGES", 1)
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


def test_mistakes_of_the_user_are_told_in_one_line(
    fetch: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TMDB_API_KEY")
    (tmp_path / "wrong").write_text("f" * 32)
    (tmp_path / "two words").write_text(f"key {KEY}")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    wrong = ("--key_file", str(tmp_path / "wrong"))
    for options, words in [
        ((), "https://www.themoviedb.org/settings/api"),
        (("--key_file", str(tmp_path / "absent")), "absent"),
        (("--key_file", str(tmp_path / "two words")), "more than a key"),
        (("--key_file", str(tmp_path / "binary")), "binary holds more than a key"),
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
    loud += "from genre_dist import storage; storage.BACKOFF_SECONDS = 0.01; sys.exit(cli.main(sys.argv[1:]))"
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
