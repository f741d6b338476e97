"""Fuzzing of what import and predict read: tables, catalogues, tars of posters, predictions that were made before."""

import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import ANY_JSON, damaged, odd_json, told_or_read
from hypothesis import given
from hypothesis import strategies as st

from genre_dist.catalogue.catalogue import SCHEMA, CatalogueWriter, count_rows, movies_file, read_rows
from genre_dist.catalogue.importing import NEEDED, import_catalogue
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import TarMember, find_posters
from genre_dist.catalogue.tables import open_table
from genre_dist.inference import predict_many
from genre_dist.inference.predict_many import IDENTITY, Identity, _claim, _read_part
from genre_dist.sealed import write_sealed

FILMS: list[dict[str, Any]] = [
    {"tmdb_id": 7 + n, "title": f"Film {n}", "overview": 'A robot, "quoted",\nof steel.' * n, "genre_ids": [18, 35]}
    | {"release_date": "1999-01-02", "popularity": 1.5, "adult": False, "poster_path": f"/{n}.jpg", "imdb_id": f"tt{n}"}
    for n in range(1, 6)
]
JPEG = b"\xff\xd8\xff\xe0 a JPEG"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---- tables


def written(suffix: str) -> bytes:
    """The films as a table."""
    if suffix == "parquet":
        data = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(FILMS), data)
        return data.getvalue()
    if suffix == "jsonl":
        return "".join(json.dumps(film) + "\n" for film in FILMS).encode()
    cells = [[json.dumps(film[name]).replace('"', '""') for name in FILMS[0]] for film in FILMS]
    return "\n".join([",".join(FILMS[0]), *(",".join(f'"{cell}"' for cell in row) for row in cells)]).encode()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
@given(data=st.data())
def test_a_damaged_table_is_read_or_told(folder: Path, suffix: str, data: st.DataObject) -> None:
    path = folder / f"t.{suffix}"
    path.write_bytes(data.draw(damaged(written(suffix))))
    rows = told_or_read(lambda: list(open_table(path, {}, "poster_path", NEEDED).rows()), path)
    assert all(0 < film < 10**18 for film, _ in rows or ())


@given(rows=st.lists(st.dictionaries(st.sampled_from(list(FILMS[0])), ANY_JSON), min_size=1, max_size=4))
def test_rows_of_anything_are_imported_or_told(folder: Path, rows: list[dict[str, Any]]) -> None:
    path, out = folder / "t.jsonl", folder / "catalogue"
    path.write_bytes(
        b"\n".join(json.dumps({"tmdb_id": n, "genre_ids": 18} | row).encode() for n, row in enumerate(rows, 1))
    )
    report = told_or_read(lambda: import_catalogue(path, [], out, overwrite=True), path)
    if report is not None:
        assert len(list(read_rows(out))) == report.rows


@given(line=odd_json(FILMS[0]))
def test_an_odd_line_is_read_or_told(folder: Path, line: bytes) -> None:
    path = folder / "t.jsonl"
    path.write_bytes(written("jsonl") + line)
    told_or_read(lambda: list(open_table(path, {}, "tmdb_id", NEEDED).rows()), path)


# ---- catalogues


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> bytes:
    with CatalogueWriter(folder) as writer:
        for film in FILMS:
            writer.add(dict.fromkeys(SCHEMA.names) | film)
    return movies_file(folder).read_bytes()


@given(data=st.data())
def test_a_damaged_catalogue_is_read_or_told(folder: Path, catalogue: bytes, data: st.DataObject) -> None:
    path = movies_file(folder)
    path.write_bytes(catalogue)
    whole = list(read_rows(folder))
    path.write_bytes(data.draw(damaged(catalogue)))
    rows = told_or_read(lambda: (count_rows(folder), list(read_rows(folder)))[1], path)
    assert rows in (None, whole)


KINDS = st.sampled_from(
    [
        *(pa.int8(), pa.uint64(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.binary()),
        *(pa.timestamp("ns"), pa.date32(), pa.list_(pa.int64()), pa.list_(pa.string()), pa.large_list(pa.int8())),
        *(pa.struct([("id", pa.int64())]), pa.decimal128(20, 2), pa.null(), pa.dictionary(pa.int32(), pa.string())),
        *(pa.map_(pa.string(), pa.int32()), pa.list_(pa.list_(pa.int32()))),
    ]
)


@given(kinds=st.fixed_dictionaries({}, optional=dict.fromkeys(SCHEMA.names, KINDS)), rows=st.integers(0, 3))
def test_a_catalogue_of_other_columns_is_read_or_told(folder: Path, kinds: dict[str, pa.DataType], rows: int) -> None:
    path = movies_file(folder)
    whole = pa.Table.from_pylist([dict.fromkeys(SCHEMA.names) | film for film in FILMS[:rows]], SCHEMA)
    columns = {name: whole[name] for name in SCHEMA.names}
    columns |= {name: pa.nulls(rows, kind) for name, kind in kinds.items()}
    pq.write_table(pa.table(columns), path)
    told_or_read(lambda: list(read_rows(folder)), path)


# ---- posters


def tar_of_posters(form: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        for n in range(1, 8):
            member = tarfile.TarInfo(f"{'p' * (90 if n == 3 else 1)}/{'é' * n}/{n}.jpg")
            member.size = len(JPEG)
            if n > 5:
                member.type, member.linkname, member.size = tarfile.LNKTYPE, f"p/{'é' * (n - 4)}/{n - 4}.jpg", 0
            tar.addfile(member, io.BytesIO(JPEG))
    return data.getvalue()


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["USTAR", "GNU", "PAX"]
)
@given(data=st.data())
def test_a_damaged_tar_of_posters_is_read_or_told(folder: Path, form: int, data: st.DataObject) -> None:
    path, keys = folder / "p.tar", {str(n) for n in range(1, 8)}
    path.write_bytes(data.draw(damaged(tar_of_posters(form))))
    places: list[TarMember] = []

    def read() -> None:
        for poster in find_posters(path, keys, LeftOut()):
            assert poster.key in keys
            poster.read()
            assert isinstance(poster.source, TarMember)
            places.append(poster.source)

    told_or_read(read, path)
    for place in places:
        told_or_read(place.read_bytes, path)


# ---- predictions


IDENTITY_OF_ALL = Identity(
    weights_sha256="a" * 64,
    thresholds=[0.5, -1.25],
    text="overview",
    table="/t.csv",
    table_sha256="b" * 64,
    columns={"tmdb_id": "id"},
    posters=["/p"],
    poster_key="tmdb_id",
    posters_sha256="c" * 64,
    films_per_part=1024,
    genres=["Drama", "Comedy"],
)


@given(written=odd_json(asdict(IDENTITY_OF_ALL)))
def test_predictions_of_anything_else_are_not_taken_for_these(folder: Path, written: bytes) -> None:
    path = folder / "out" / IDENTITY
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(written)
    try:
        _claim(path.parent, IDENTITY_OF_ALL)
    except ValueError as error:
        assert str(path.parent) in str(error)  # noqa: PT017 (others are taken)
        assert str(error).isprintable()  # noqa: PT017
    write_sealed(path, asdict(IDENTITY_OF_ALL))
    _claim(path.parent, IDENTITY_OF_ALL)


@given(data=st.data())
def test_a_damaged_part_is_made_again_or_says_what_it_said(folder: Path, data: st.DataObject) -> None:
    path, ids = folder / "part-000000.parquet", list(range(1, 50))
    rows = [
        dict.fromkeys(predict_many.SCHEMA.names) | {"tmdb_id": n, "logits": [n / 7.0] * 19, "genres": ["Drama"]}
        for n in ids
    ]
    table = pa.Table.from_pylist(rows, predict_many.SCHEMA)
    whole = io.BytesIO()
    pq.write_table(table, whole, write_page_checksum=True)
    path.write_bytes(data.draw(damaged(whole.getvalue())))
    found = _read_part(path, ids)
    assert found is None or found == table
