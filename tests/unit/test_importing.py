"""Import: every usual form of table, cell and poster archive is taken; hostile and broken ones do no harm."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_disk import small_disk

from genre_dist.catalogue.catalogue import count_rows, movies_file, poster_file, read_rows
from genre_dist.catalogue.importing import import_catalogue
from genre_dist.lock import BusyError, one_writer

HEAT = {"tmdb_id": 949, "imdb_id": "tt0113277", "title": "Heat", "genre_ids": [28, 80], "release_date": "1995-12-15"}
ALIEN = {"tmdb_id": 348, "imdb_id": "tt0078748", "title": "Alien", "genre_ids": [27, 878], "release_date": "1979"}
JPEG = b"\xff\xd8\xff\xe0"  # how they begin, whatever they are called
HEAT_JPEG = JPEG + b"of Heat"
OVERVIEW = 'A "quoted", comma\'d\nand broken line — with ü.'


def make_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table in the format that the suffix says; in CSV, lists are written as Python prints them (as pandas does)."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_tar(path: Path, members: Mapping[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def films(catalogue: Path) -> dict[int, dict[str, Any]]:
    return {row["tmdb_id"]: row for row in read_rows(catalogue)}


def files_under(folder: Path) -> set[str]:
    """All files but locks."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return {name for name in found if Path(name).name != ".lock"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return make_table(tmp_path / "movies.jsonl", [HEAT, ALIEN])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "catalogue"


# ---- tables


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "json-lines"])
def test_each_table_format_gives_the_same_catalogue(tmp_path: Path, out: Path, suffix: str) -> None:
    rows = [HEAT | {"overview": OVERVIEW, "popularity": 17.9, "adult": False}, ALIEN | {"overview": ""}]
    rows[1] |= {"popularity": None, "adult": True}
    report = import_catalogue(make_table(tmp_path / f"t.{suffix}", rows), [], out)
    assert (report.rows, report.left_out.lines(), report.unknown_genres) == (2, [], {})
    assert report.having == {"overview": 1, "title": 2, "release_date": 2, "genre_ids": 2, "poster": 0}
    heat, alien = read_rows(out)
    assert heat == {
        **HEAT,
        "original_language": "",
        "overview": OVERVIEW,
        "poster_path": "",
        "popularity": pytest.approx(17.9),
        "adult": False,
        "poster_status": "none",
        "poster_bytes": 0,
        "poster_sha256": "",
        "fetched_at": None,
    }
    assert (alien["title"], alien["genre_ids"], alien["popularity"], alien["adult"]) == ("Alien", [27, 878], None, True)


def test_columns_of_other_names_are_mapped(tmp_path: Path, out: Path) -> None:
    path = make_table(tmp_path / "t.csv", [{"id": "949", "Title": "Heat", "Genre": "Action, Crime", "genres": "x"}])
    import_catalogue(path, [], out, columns={"tmdb_id": "id", "title": "Title", "genres": "Genre"})
    assert films(out)[949]["title"] == "Heat"
    assert films(out)[949]["genre_ids"] == [28, 80]


def test_genre_ids_come_before_genre_names(tmp_path: Path, out: Path) -> None:
    path = make_table(tmp_path / "t.jsonl", [{"tmdb_id": 1, "genres": ["Drama"], "genre_ids": [35]}])
    import_catalogue(path, [], out)
    assert films(out)[1]["genre_ids"] == [35]


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"id": 1, "genres": "Drama"},
            {},
            r"has no column 'tmdb_id'; it has id, genres\. .* --columns tmdb_id=COLUMN",
        ),
        (
            {"tmdb_id": 1, "kind": "Drama"},
            {},
            r"has no column 'genre_ids'; it has tmdb_id, kind\. .*--columns genre_ids",
        ),
        ({"tmdb_id": 1, "genres": ""}, {"title": "Name"}, r"no column 'Name' for title; it has tmdb_id, genres"),
        (
            {"tmdb_id": 1, "genres": ""},
            {"titel": "genres"},
            r"'titel' is no column of a catalogue; there are tmdb_id, ",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_missing_column_is_named_with_those_there_are(
    tmp_path: Path, out: Path, suffix: str, row: dict[str, Any], columns: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_catalogue(make_table(tmp_path / f"t.{suffix}", [row]), [], out, columns=columns)
    assert files_under(out) == set()


@pytest.mark.parametrize("bad", ["1997-08-20", "", "12.5", "-3", "0", "9" * 30, None, True, [5]])
def test_a_row_without_proper_id_is_named_and_nothing_is_written(tmp_path: Path, out: Path, bad: Any) -> None:
    path = make_table(tmp_path / "t.jsonl", [HEAT, ALIEN | {"tmdb_id": bad}])
    with pytest.raises(ValueError, match=r"t\.jsonl, row 2: .* is no TMDB id"):
        import_catalogue(path, [], out)
    assert files_under(out) == set()


@pytest.mark.parametrize("good", [949, 949.0, "949", " 949 ", "949.0", "000949"])
def test_ids_that_passed_through_a_spreadsheet_are_read_and_find_posters(tmp_path: Path, out: Path, good: Any) -> None:
    tar = make_tar(tmp_path / "p.tar", {"949.jpg": HEAT_JPEG})
    import_catalogue(make_table(tmp_path / "t.jsonl", [HEAT | {"tmdb_id": good}]), [tar], out)
    assert {film: row["poster_status"] for film, row in films(out).items()} == {949: "ok"}


def test_the_first_of_two_rows_with_one_id_wins(tmp_path: Path, out: Path) -> None:
    path = make_table(tmp_path / "t.csv", [HEAT, ALIEN, HEAT | {"title": "Heat, again"}])
    report = import_catalogue(path, [], out)
    assert (report.rows, report.left_out.counts) == (2, {"rows with an id that was there before, left out": 1})
    assert [row["title"] for row in read_rows(out)] == ["Heat", "Alien"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"tmdb_id": 1, "genres": ""}\n{"tmdb_id": 2,\n', r"t\.jsonl, line 2: not JSON"),
        ("t.jsonl", b'{"tmdb_id": 1, "genres": ""}\n\n[1]\n', r"t\.jsonl, line 3: not an object"),
        ("t.csv", b"tmdb_id,genres\n1,Drama\n2,Com\xe9die\n", r"t\.csv, after line \d: not UTF-8"),
        ("t.csv", b"tmdb_id,genres\n", r"t\.csv has no rows"),
        ("t.parquet", b"PAR1 but no more", r"t\.parquet cannot be read as Parquet"),
        ("t.xlsx", b"", r"t\.xlsx: a table must end in \.parquet, \.csv or \.jsonl"),
    ],
)
def test_an_unreadable_table_is_named(tmp_path: Path, out: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        import_catalogue(tmp_path / name, [], out)
    assert not movies_file(out).exists()


def test_a_quote_left_open_does_not_fill_the_memory(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('tmdb_id,genres\n1,Drama\n2,"Comedy\n' + "3,Drama\n" * 2_500_000)
    with pytest.raises(ValueError, match=r"t\.csv, line \d+: field larger than.*quote left open"):
        import_catalogue(path, [], out)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_that_only_later_rows_have_are_read(tmp_path: Path, out: Path, suffix: str) -> None:
    rows = [HEAT, ALIEN | {"overview": "In space.", "poster_path": "/a.jpg"}]
    path = make_table(tmp_path / f"t.{suffix}", rows if suffix == "jsonl" else [rows[1], rows[0]])
    report = import_catalogue(path, [], out, columns={"overview": "overview"})
    assert films(out)[348]["overview"] == "In space."
    assert (report.having["overview"], report.having["title"]) == (1, 2)


def test_a_table_of_ever_new_columns_does_not_fill_the_memory(tmp_path: Path, out: Path) -> None:
    path = make_table(tmp_path / "t.jsonl", [{f"{row} {n}": 1 for n in range(1000)} for row in range(11)])
    with pytest.raises(ValueError, match=r"t\.jsonl has more than 10,000 columns"):
        import_catalogue(path, [], out)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, out: Path, suffix: str) -> None:
    path = make_table(tmp_path / f"t.{suffix}", [{"tmdb_id": 1, "genres": "Drama", "title": "Heat", "Title": "Alien"}])
    if suffix == "csv":
        path.write_text(path.read_text().replace("Title", "title"))
    else:
        pq.write_table(pq.read_table(path).rename_columns(["tmdb_id", "genres", "title", "title"]), path)
    with pytest.raises(ValueError, match=rf"t\.{suffix} has two columns 'title'; rename or delete one"):
        import_catalogue(path, [], out)


def test_blanks_around_the_names_in_a_heading_do_not_matter(tmp_path: Path, out: Path) -> None:
    (tmp_path / "t.csv").write_text("tmdb_id, title ,genres\n949,Heat,Drama\n")
    import_catalogue(tmp_path / "t.csv", [], out)
    assert films(out)[949]["title"] == "Heat"


# ---- cells


@pytest.mark.parametrize(
    "cell",
    [
        [18, 35],
        [18.0, 35.0],
        ["18", "35"],
        ["Drama", "Comedy"],
        ["drama", " COMEDY ", "Drama"],
        [{"id": 18, "name": "Drama"}, {"id": 35, "name": "Comedy"}],
        [{"name": "Drama"}, {"name": "Comedy"}],
        "18|35",
        "18.0|35.0",
        "18.0, 35.",
        ["18.0", "35.0"],
        "['18.0', '35.0']",
        "[18.0, 35.0]",
        [{"id": "18.0"}, {"id": 35.0}],
        "18,35",
        "Drama|Comedy",
        "Drama, Comedy",
        "[18, 35]",
        "['Drama', 'Comedy']",
        '["Drama", "Comedy"]',
        '[{"id": 18, "name": "Drama"}, {"id": 35, "name": "Comedy"}]',
        "[{'id': 18, 'name': 'Drama'}, {'id': 35, 'name': 'Comedy'}]",
    ],
    ids=str,
)
def test_genres_are_read_in_every_usual_form(tmp_path: Path, out: Path, cell: Any) -> None:
    report = import_catalogue(make_table(tmp_path / "t.jsonl", [HEAT | {"genre_ids": cell}]), [], out)
    assert films(out)[949]["genre_ids"] == [18, 35]
    assert report.unknown_genres == {}


@pytest.mark.parametrize("cell", [None, "", [], "[]", " ", float("nan")], ids=repr)
def test_a_film_without_genre_stays_and_is_counted(tmp_path: Path, out: Path, cell: Any) -> None:
    report = import_catalogue(make_table(tmp_path / "t.jsonl", [HEAT | {"genre_ids": cell}, ALIEN]), [], out)
    assert films(out)[949]["genre_ids"] == []
    assert report.left_out.lines() == ["1 films without a known genre (pack leaves them out), such as film 949"]
    assert (report.rows, report.unknown_genres) == (2, {})


def test_unknown_genres_are_dropped_and_counted_by_name(tmp_path: Path, out: Path) -> None:
    cells = [
        "Drama|Film-Noir",
        "Film-Noir",
        [18, 999],
        "18.50|1e3",
        [{"id": 10769, "name": "Foreign"}],
        "[{'id': 18",
        "[" * 9000,
    ]
    rows = [{"tmdb_id": number, "genres": cell} for number, cell in enumerate(cells, start=1)]
    report = import_catalogue(make_table(tmp_path / "t.jsonl", rows), [], out)
    assert [row["genre_ids"] for row in read_rows(out)] == [[18], [], [18], [], [], [], []]
    assert report.left_out.counts.total() == 5
    assert report.unknown_genres == {
        "Film-Noir": 2,
        "999": 1,
        "18.50": 1,
        "1e3": 1,
        "Foreign": 1,
        "[{'id': 18": 1,
        "[" * 60: 1,
    }


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1995-12-15", "1995-12-15"),
        ("1995-12-15T00:00:00Z", "1995-12-15"),
        ("2003", "2003"),
        (2003, "2003"),
        (2003.0, "2003"),
        ("2003.0", "2003"),
        ("6/15/95", ""),
        ("1995-02-31", ""),
        ("soon", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_release_dates_are_plain_or_empty(tmp_path: Path, out: Path, cell: Any, expected: str) -> None:
    import_catalogue(make_table(tmp_path / "t.jsonl", [HEAT | {"release_date": cell}]), [], out)
    assert films(out)[949]["release_date"] == expected


@pytest.mark.parametrize("cell", [date(1995, 12, 15), datetime(1995, 12, 15, 8, 30)])
def test_dates_of_a_parquet_table_are_written_out(tmp_path: Path, out: Path, cell: date) -> None:
    import_catalogue(make_table(tmp_path / "t.parquet", [HEAT | {"release_date": cell}]), [], out)
    assert films(out)[949]["release_date"] == "1995-12-15"


def test_text_that_old_programs_wrote_as_bytes_is_text(tmp_path: Path, out: Path) -> None:
    import_catalogue(make_table(tmp_path / "t.parquet", [HEAT | {"title": "Amélie".encode()}]), [], out)
    assert films(out)[949]["title"] == "Amélie"


@pytest.mark.parametrize(
    ("cell", "expected"), [("17.9", 17.9), ("1e39", None), ("-inf", None), ("NaN", None), ("no", None), (None, None)]
)
def test_numbers_are_what_a_catalogue_can_hold(tmp_path: Path, out: Path, cell: Any, expected: float | None) -> None:
    import_catalogue(make_table(tmp_path / "t.jsonl", [HEAT | {"popularity": cell}]), [], out)
    assert films(out)[949]["popularity"] == (pytest.approx(expected) if expected else None)


def test_cells_that_are_not_read_are_counted_with_an_example(tmp_path: Path, out: Path) -> None:
    rows = [HEAT | {"release_date": "12/15/95", "popularity": "much"}, ALIEN | {"release_date": "May 1979"}]
    report = import_catalogue(make_table(tmp_path / "t.jsonl", rows), [], out)
    assert report.left_out.lines() == [
        "2 films whose release_date has a form that is not read, such as film 949 (12/15/95)",
        "1 films whose popularity has a form that is not read, such as film 949 (much)",
    ]
    assert report.having["release_date"] == 0


def test_half_a_surrogate_pair_does_not_stop_the_import(tmp_path: Path, out: Path) -> None:
    import_catalogue(make_table(tmp_path / "t.jsonl", [HEAT | {"title": "He\ud83dat"}]), [], out)
    assert films(out)[949]["title"] == "He?at"


# ---- posters


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_posters_come_out_of_a_tar(tmp_path: Path, table: Path, out: Path, mode: str) -> None:
    members = {
        "p/949.jpg": HEAT_JPEG,
        "p/949.png": HEAT_JPEG + b"again",
        "348.txt": b"",
        "._348.jpg": b"mac",
        "p/7.jpg": b"?",
    }
    tar = make_tar(tmp_path / "p.tar", members, mode)
    report = import_catalogue(table, [tar], out)
    assert report.having["poster"] == 1
    assert report.left_out.lines() == [
        f"2 files that are no picture, such as {tar}, member '348.txt' (byte 2048)",
        f"1 further files for films that have a poster, left out, such as {tar}, member 'p/949.png' (byte 1024)",
        f"1 posters without a row, left out, such as {tar}, member 'p/7.jpg' (byte 3584)",
    ]
    heat, alien = films(out)[949], films(out)[348]
    assert poster_file(out, 949).read_bytes() == HEAT_JPEG
    assert (heat["poster_status"], heat["poster_bytes"]) == ("ok", 11)
    assert heat["poster_sha256"] == hashlib.sha256(HEAT_JPEG).hexdigest()
    assert alien["poster_status"] == "none"
    assert files_under(out) == {"movies.parquet", "posters/949/949.jpg"}


def test_posters_come_out_of_folders_and_stay_there(tmp_path: Path, table: Path, out: Path) -> None:
    for name in ("a/b/949.JPEG", "a/348.webp", "a/12.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG + name.encode())
    report = import_catalogue(table, [tmp_path / "a"], out)
    assert report.having["poster"] == 2
    assert report.left_out.lines() == [f"1 posters without a row, left out, such as {tmp_path}/a/12.png"]
    assert poster_file(out, 949).read_bytes() == (tmp_path / "a/b/949.JPEG").read_bytes() == JPEG + b"a/b/949.JPEG"
    assert films(out)[348]["poster_sha256"] == hashlib.sha256(JPEG + b"a/348.webp").hexdigest()
    again = import_catalogue(table, [tmp_path / "a"], out, overwrite=True)
    assert again.left_out.lines() == report.left_out.lines()
    assert files_under(out) == {"movies.parquet", "posters/949/949.jpg", "posters/348/348.jpg"}


def test_posters_are_copied_where_links_are_impossible(
    tmp_path: Path, table: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/949.jpg").write_bytes(b"heat")
    assert import_catalogue(table, [tmp_path / "a"], out).having["poster"] == 1
    assert poster_file(out, 949).stat().st_nlink == 1


def test_an_import_that_was_killed_can_be_run_again(tmp_path: Path, table: Path, out: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/949.jpg").write_bytes(b"heat")
    import_catalogue(table, [tmp_path / "a"], out)
    movies_file(out).unlink()
    (poster_file(out, 949).parent / ".949.jpg.part").write_bytes(b"he")
    import_catalogue(table, [tmp_path / "a"], out)
    assert files_under(out) == {"movies.parquet", "posters/949/949.jpg"}


def test_posters_are_found_by_any_column(tmp_path: Path, out: Path) -> None:
    path = make_table(tmp_path / "t.csv", [HEAT | {"ml": 6}, ALIEN | {"imdb_id": "", "ml": 1214}])
    by_imdb = make_tar(tmp_path / "imdb.tar", {"tt0113277.jpg": b"heat", ".jpg": b"no name", "949.jpg": b"wrong"})
    by_ml = make_tar(tmp_path / "ml.tar", {"6.jpg": b"heat", "1214.jpg": b"alien"})
    assert import_catalogue(path, [by_imdb], out, poster_key="imdb_id").having["poster"] == 1
    assert poster_file(out, 949).read_bytes() == b"heat"
    assert import_catalogue(path, [by_ml], out, poster_key="ml", overwrite=True).having["poster"] == 2
    assert poster_file(out, 348).read_bytes() == b"alien"
    with pytest.raises(ValueError, match=r"--poster_key: .* no column 'movielens'; it has tmdb_id, "):
        import_catalogue(path, [by_ml], out, poster_key="movielens", overwrite=True)


@pytest.mark.parametrize(
    "cells",
    [
        ("/rhIRb.jpg", "zMyfP.jpg"),
        ("rhIRb", "posters/zMyfP.webp"),
        ("https://image.tmdb.org/t/p/w500/rhIRb.jpg", "http://host/zMyfP.jpg?v=1"),
    ],
)
def test_cells_that_are_paths_names_or_urls_find_posters(tmp_path: Path, out: Path, cells: tuple[str, str]) -> None:
    rows = [HEAT | {"poster_path": cells[0]}, ALIEN | {"poster_path": cells[1]}]
    tar = make_tar(tmp_path / "p.tar", {"w342/rhIRb.jpg": HEAT_JPEG, "zMyfP.PNG": JPEG})
    import_catalogue(make_table(tmp_path / "t.csv", rows), [tar], out, poster_key="poster_path")
    assert (poster_file(out, 949).read_bytes(), poster_file(out, 348).read_bytes()) == (HEAT_JPEG, JPEG)


def test_films_that_name_the_same_poster_get_none_rather_than_the_wrong_one(tmp_path: Path, out: Path) -> None:
    rows = [HEAT | {"poster_path": "a/1.jpg"}, ALIEN | {"poster_path": "b/1.jpg"}]
    tar = make_tar(tmp_path / "p.tar", {"b/1.jpg": JPEG})
    report = import_catalogue(make_table(tmp_path / "t.csv", rows), [tar], out, poster_key="poster_path")
    assert report.having["poster"] == 0
    assert report.left_out.lines()[0] == (
        "2 films that name their poster as another film does (column poster_path), without a poster, "
        "such as film 348 (1)"
    )


@pytest.mark.parametrize("first", [b"", b"<html>404</html>"], ids=["an empty file", "a page"])
def test_a_picture_that_comes_later_is_better_than_what_is_none(
    tmp_path: Path, table: Path, out: Path, first: bytes
) -> None:
    for name, data in (("p1/949.jpg", first), ("p2/949.jpg", HEAT_JPEG), ("p3/949.jpg", JPEG)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    import_catalogue(table, [tmp_path / "p1", tmp_path / "p2", tmp_path / "p3"], out)
    assert (films(out)[949]["poster_status"], poster_file(out, 949).read_bytes()) == ("ok", HEAT_JPEG)


def test_an_empty_poster_file_is_no_poster(tmp_path: Path, table: Path, out: Path) -> None:
    report = import_catalogue(table, [make_tar(tmp_path / "p.tar", {"949.jpg": b""})], out)
    assert report.having["poster"] == 0
    assert report.left_out.lines() == ["1 posters failed: the file is empty, such as film 949"]
    assert films(out)[949]["poster_status"] == "failed: the file is empty"


@pytest.mark.parametrize("name", ["../../949.jpg", "{tmp}/949.jpg", "a/../../../949.jpg", "..//949.jpg"])
def test_no_member_name_leads_outside_the_catalogue(tmp_path: Path, table: Path, out: Path, name: str) -> None:
    tar = make_tar(tmp_path / "p.tar", {name.format(tmp=tmp_path): b"heat"})
    before = files_under(tmp_path)
    import_catalogue(table, [tar], out)
    assert files_under(tmp_path) - before == {"catalogue/movies.parquet", "catalogue/posters/949/949.jpg"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_only_regular_members_are_read(tmp_path: Path, table: Path, out: Path, kind: bytes) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        member = tarfile.TarInfo("949.jpg")
        member.type, member.linkname = kind, str(tmp_path / "secret.jpg")
        tar.addfile(member)
    assert import_catalogue(table, [tmp_path / "p.tar"], out).having["poster"] == 0
    assert files_under(out) == {"movies.parquet"}


POSTERS = {"949.jpg": b"heat" * 500, "348.jpg": b"alien" * 500}
FIRST_ENDS, SECOND_ENDS = 512 + 2048, 2 * 512 + 2048 + 2560


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    ("cut", "message", "whole"),
    [
        (300, "is no tar, or cut off at its start", set()),
        (1000, r"damaged at or after member '949\.jpg' \(byte 0\)", set()),
        (FIRST_ENDS, r"at or after member '949\.jpg' .*no end mark at byte 2560", {949}),
        (FIRST_ENDS + 100, r"at or after member '949\.jpg'", {949}),
        (FIRST_ENDS + 1000, r"at or after member '348\.jpg' \(byte 2560\)", {949}),
        (SECOND_ENDS, r"at or after member '348\.jpg' .*no end mark at byte 5632", {949, 348}),
    ],
)
def test_a_truncated_tar_is_named_with_the_place(
    tmp_path: Path, table: Path, out: Path, mode: str, cut: int, message: str, whole: set[int]
) -> None:
    whole_tar = make_tar(tmp_path / "whole.tar", POSTERS).read_bytes()
    (tmp_path / "p.tar").write_bytes(whole_tar[:cut])
    if mode == "w:gz":
        (tmp_path / "p.tar").write_bytes(gzip.compress(whole_tar[:cut]))
    with pytest.raises(ValueError, match=rf"p\.tar {message}" if cut < 500 else rf"p\.tar is .*{message}"):
        import_catalogue(table, [tmp_path / "p.tar"], out)
    assert files_under(out) == {str(poster_file(out, film).relative_to(out)) for film in whole}
    assert all(poster_file(out, film).read_bytes() == POSTERS[f"{film}.jpg"] for film in whole)


def test_a_truncated_gzip_is_named(tmp_path: Path, table: Path, out: Path) -> None:
    whole = make_tar(
        tmp_path / "p.tar", {f"{n}.jpg": hashlib.sha256(b"%d" % n).digest() * 99 for n in range(99)}, "w:gz"
    )
    whole.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"p\.tar is damaged at or after member"):
        import_catalogue(table, [whole], out)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path, table: Path, out: Path) -> None:
    path = make_tar(tmp_path / "p.tar", POSTERS)
    data = bytearray(path.read_bytes())
    data[FIRST_ENDS + 10] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"p\.tar is damaged at or after member '949\.jpg'"):
        import_catalogue(table, [path], out)


def test_what_a_tar_can_hold_ends_in_the_catalogue(tmp_path: Path, table: Path, out: Path) -> None:
    first, second = make_tar(tmp_path / "1.tar", {"949.jpg": HEAT_JPEG}), tmp_path / "2.tar"
    with tarfile.open(second, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("348.jpg")
        member.type, member.linkname = tarfile.LNKTYPE, "é" * 200 + ".jpg"
        tar.addfile(member)
        member = tarfile.TarInfo("é" * 200 + ".jpg")
        member.size = len(JPEG)
        tar.addfile(member, io.BytesIO(JPEG))
    (tmp_path / "p.tar").write_bytes(first.read_bytes() + second.read_bytes())
    assert import_catalogue(table, [tmp_path / "p.tar"], out).having["poster"] == 2
    assert (poster_file(out, 949).read_bytes(), poster_file(out, 348).read_bytes()) == (HEAT_JPEG, JPEG)


# ---- places


def test_a_second_import_is_refused_while_the_lock_is_held(tmp_path: Path, table: Path, out: Path) -> None:
    with one_writer(out), pytest.raises(BusyError, match=rf"catalogue is being written by process {os.getpid()} on "):
        import_catalogue(table, [], out)
    import_catalogue(table, [], out)
    assert count_rows(out) == 2


@pytest.mark.parametrize(("limit", "what"), [(100, "949.jpg"), (3000, "movies.parquet")])
def test_a_full_disk_ends_in_one_line_that_names_the_file_and_the_next_import_goes_on(
    tmp_path: Path, out: Path, limit: int, what: str
) -> None:
    rows = [HEAT | {"overview": ""}] + [
        ALIEN | {"tmdb_id": n, "overview": hashlib.sha256(b"%d" % n).hexdigest()} for n in range(1, 200)
    ]
    table, tar = make_table(tmp_path / "t.csv", rows), make_tar(tmp_path / "p.tar", {"949.jpg": HEAT_JPEG * 20})
    with small_disk(limit), pytest.raises(OSError, match=rf"File too large.*{re.escape(what)}") as told:
        import_catalogue(table, [tar], out)
    assert len(str(told.value).splitlines()) == 1
    assert files_under(out) <= {"posters/949/949.jpg"}
    assert import_catalogue(table, [tar], out).rows == 200


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, table: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        import_catalogue(table, [], tmp_path / "file" / "catalogue")


def test_what_a_killed_import_left_is_removed(tmp_path: Path, table: Path, out: Path) -> None:
    for name in (".movies.parquet.part", "posters/007/.7.jpg.part"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")
    import_catalogue(table, [], out)
    assert files_under(out) == {"movies.parquet"}


def test_a_catalogue_is_not_overwritten_unasked(tmp_path: Path, table: Path, out: Path) -> None:
    import_catalogue(table, [make_tar(tmp_path / "p.tar", POSTERS)], out)
    with pytest.raises(ValueError, match="already holds a catalogue; give another --out, or --overwrite"):
        import_catalogue(table, [], out)
    assert count_rows(out) == 2
    import_catalogue(make_table(tmp_path / "one.csv", [HEAT]), [], out, overwrite=True)
    assert files_under(out) == {"movies.parquet"}


def test_a_bad_table_does_not_cost_the_older_catalogue(tmp_path: Path, table: Path, out: Path) -> None:
    import_catalogue(table, [make_tar(tmp_path / "p.tar", POSTERS)], out)
    bad = make_table(tmp_path / "bad.csv", [HEAT, HEAT | {"tmdb_id": "x"}])
    with pytest.raises(ValueError, match="row 2"):
        import_catalogue(bad, [], out, overwrite=True)
    assert (count_rows(out), poster_file(out, 949).is_file()) == (2, True)


def test_what_is_to_be_read_may_not_lie_where_the_catalogue_goes(tmp_path: Path, table: Path, out: Path) -> None:
    import_catalogue(table, [make_tar(tmp_path / "p.tar", POSTERS)], out)
    with pytest.raises(ValueError, match=r"posters lies inside --out"):
        import_catalogue(table, [out / "posters"], out, overwrite=True)
    assert poster_file(out, 949).is_file()


def test_a_place_that_does_not_exist_is_named(tmp_path: Path, table: Path, out: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist; check --table and --posters"):
        import_catalogue(table, [tmp_path / "nowhere"], out)
    with pytest.raises(ValueError, match=r"movies\.jsonl is no tar, or cut off"):
        import_catalogue(table, [table], out)
