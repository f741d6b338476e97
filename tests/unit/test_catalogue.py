"""The catalogue: rows come back as they went in, and nothing is ever half written."""

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_disk import small_disk

from genre_dist.catalogue.catalogue import (
    ROWS_PER_GROUP,
    SCHEMA,
    CatalogueWriter,
    count_rows,
    movies_file,
    poster_file,
    read_rows,
    write_poster,
)


def film(tmdb_id: int, **other: Any) -> dict[str, Any]:
    row = dict.fromkeys(SCHEMA.names, "") | {
        "tmdb_id": tmdb_id,
        "genre_ids": [18, 35],
        "popularity": 1.5,
        "adult": False,
        "poster_status": "none",
        "poster_bytes": 0,
        "fetched_at": None,
    }
    return row | other


def write_rows(catalogue: Path, rows: Iterable[dict[str, Any]]) -> None:
    with CatalogueWriter(catalogue) as writer:
        for row in rows:
            writer.add(row)


def write(catalogue: Path, ids: Iterable[int]) -> None:
    write_rows(catalogue, map(film, ids))


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_rows_come_back_in_order_and_whole(tmp_path: Path) -> None:
    rows = [film(7, title="Amélie", overview="Two\nlines", genre_ids=[]), film(3, popularity=None)]
    write_rows(tmp_path, rows)
    assert list(read_rows(tmp_path)) == rows


def test_the_time_of_fetching_is_kept_with_its_zone(tmp_path: Path) -> None:
    fetched = datetime(2026, 11, 23, 14, 30, 5, tzinfo=UTC)
    write_rows(tmp_path, [film(7, fetched_at=fetched)])
    assert [row["fetched_at"] for row in read_rows(tmp_path)] == [fetched]


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3))
    assert list(read_rows(tmp_path, ["tmdb_id", "genre_ids"])) == [
        {"tmdb_id": 1, "genre_ids": [18, 35]},
        {"tmdb_id": 2, "genre_ids": [18, 35]},
    ]


def test_an_empty_catalogue_is_a_catalogue(tmp_path: Path) -> None:
    write(tmp_path, range(0))
    assert count_rows(tmp_path) == 0
    assert list(read_rows(tmp_path)) == []


def test_rows_leave_memory_a_group_at_a_time(tmp_path: Path) -> None:
    with CatalogueWriter(tmp_path) as writer:
        for tmdb_id in range(1, ROWS_PER_GROUP + 2):
            writer.add(film(tmdb_id))
            assert len(writer.rows) < ROWS_PER_GROUP
    assert pq.read_metadata(movies_file(tmp_path)).num_row_groups == 2
    assert count_rows(tmp_path) == ROWS_PER_GROUP + 1


@pytest.mark.parametrize("at", [1, ROWS_PER_GROUP + 2], ids=["before the first row group", "after it"])
def test_a_failed_writer_leaves_nothing(tmp_path: Path, at: int) -> None:
    def breaks() -> Iterator[int]:
        yield from range(1, at)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, breaks())
    assert everything_in(tmp_path) == set()


def test_a_failed_writer_leaves_the_older_catalogue_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    before = movies_file(tmp_path).read_bytes()
    wrong = {name: value for name, value in film(9, colour="red").items() if name != "title"}
    with pytest.raises(ValueError, match="film 9: missing or unknown columns of the catalogue: colour, title"):
        write_rows(tmp_path, [film(8), wrong])
    assert movies_file(tmp_path).read_bytes() == before
    assert everything_in(tmp_path) == {"movies.parquet"}


def test_the_catalogue_appears_only_at_the_end(tmp_path: Path) -> None:
    with CatalogueWriter(tmp_path) as writer:
        writer.add(film(1))
        assert not movies_file(tmp_path).exists()
    assert count_rows(tmp_path) == 1


def test_a_value_of_the_wrong_kind_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid):
        write_rows(tmp_path, [film(1, popularity="very")])
    assert everything_in(tmp_path) == set()


@pytest.mark.parametrize("read", [count_rows, read_rows])
def test_no_catalogue_says_how_to_make_one(tmp_path: Path, read: Any) -> None:
    with pytest.raises(ValueError, match=r"no catalogue in .*nowhere.*genre-dist import.*fetch.*sample"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("read", [count_rows, read_rows])
def test_a_damaged_catalogue_is_named(tmp_path: Path, read: Any) -> None:
    write(tmp_path, range(1, 4))
    movies_file(tmp_path).write_bytes(movies_file(tmp_path).read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"movies\.parquet cannot be read as Parquet"):
        read(tmp_path)


def test_a_flipped_bit_in_a_catalogue_is_told(tmp_path: Path) -> None:
    write_rows(tmp_path, [film(7, overview="hunters of the night")])
    data = movies_file(tmp_path).read_bytes()
    at = data.index(b"hunters of")
    movies_file(tmp_path).write_bytes(data[:at] + b"j" + data[at + 1 :])
    with pytest.raises(ValueError, match=r"movies\.parquet is damaged .*make one with"):
        list(read_rows(tmp_path))


def test_missing_columns_are_named_before_the_first_row_is_asked_for(tmp_path: Path) -> None:
    pq.write_table(pa.table({"tmdb_id": [1], "title": ["x"]}), movies_file(tmp_path))
    with pytest.raises(ValueError, match=r"lacks overview, genre_ids .*: it is no catalogue of ours; make one with"):
        read_rows(tmp_path, ["tmdb_id", "overview", "genre_ids"])


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("title", pa.array([5]), "has title as int64"),
        ("genre_ids", pa.array(["18"]), "has genre_ids as string"),
        ("genre_ids", pa.array([["18"]]), r"has genre_ids as list<.*string>"),
        ("tmdb_id", pa.array(["7"]), "has tmdb_id as string"),
        ("tmdb_id", pa.array([7.5]), "has tmdb_id as double"),
        ("tmdb_id", pa.array([None], pa.int64()), "(row 1: None is no film's id|is damaged .*null)"),
        ("tmdb_id", pa.array([-7]), "row 1: -7 is no film's id"),
        ("tmdb_id", pa.array([2**63 + 5], pa.uint64()), "is damaged .*9223372036854775813"),
        ("fetched_at", pa.array([1]), "has fetched_at as int64"),
    ],
)
def test_columns_of_other_types_are_told_in_one_line(tmp_path: Path, name: str, values: pa.Array, told: str) -> None:
    table = pa.Table.from_pylist([film(7)], SCHEMA)
    table = table.set_column(SCHEMA.get_field_index(name), name, values)
    pq.write_table(table, movies_file(tmp_path))
    with pytest.raises(ValueError, match=rf"movies\.parquet,? {told}.*make one with") as error:
        list(read_rows(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_columns_that_other_programs_write_a_little_otherwise_are_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([film(7, title="Heat")], SCHEMA)
    for name, kind in {"tmdb_id": pa.int32(), "title": pa.large_string(), "genre_ids": pa.list_(pa.int64())}.items():
        table = table.set_column(SCHEMA.get_field_index(name), name, table[name].cast(kind))
    table = table.set_column(SCHEMA.get_field_index("overview"), "overview", table["overview"].dictionary_encode())
    pq.write_table(table, movies_file(tmp_path))
    assert list(read_rows(tmp_path)) == [film(7, title="Heat")]


def test_a_column_that_is_there_twice_is_told(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([film(7)], SCHEMA)
    pq.write_table(table.append_column("title", pa.array(["x"])), movies_file(tmp_path))
    with pytest.raises(ValueError, match=r"movies\.parquet lacks title \(or has them twice\)"):
        read_rows(tmp_path)


@pytest.mark.parametrize(("tmdb_id", "place"), [(7, "007/7.jpg"), (603, "603/603.jpg"), (1_234_042, "042/1234042.jpg")])
def test_posters_spread_over_a_thousand_folders(tmdb_id: int, place: str) -> None:
    assert poster_file(Path("cat"), tmdb_id) == Path("cat/posters") / place


def test_a_poster_is_copied_measured_and_hashed(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9_000
    assert write_poster(tmp_path, 5, data) == (len(data), hashlib.sha256(data).hexdigest())
    assert poster_file(tmp_path, 5).read_bytes() == data


def test_a_poster_that_the_disk_has_no_room_for_is_not_written(tmp_path: Path) -> None:
    write_poster(tmp_path, 5, b"older")
    with small_disk(100), pytest.raises(OSError, match=r"5\.jpg"):
        write_poster(tmp_path, 5, bytes(3000))
    assert poster_file(tmp_path, 5).read_bytes() == b"older"
    assert everything_in(tmp_path) == {"posters/005/5.jpg"}
