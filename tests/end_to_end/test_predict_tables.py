"""Predictions of tables: texts, cells and posters mean what they mean to import and pack; what changed is told."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import parts_of_64
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from acquire_server import KEY, serve
from helpers import options, snapshot
from small_disk import small_disk

from genre_dist import cli, storage
from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.inference import predict_many
from genre_dist.lock import one_writer
from genre_dist.packing.pack import pack
from genre_dist.train import main as train_main

TEXT_ONLY = ("--model.poster.arch", "none")


def trained(shards: Path, run: Path, *more: str) -> Path:
    assert train_main(options(shards, run, "--data.global_batch", 32, "--train.steps", 2, *more)) == 0
    return run


@pytest.fixture(scope="module", params=["title", "both"])
def texts(request: pytest.FixtureRequest, sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on titles, and one on titles and overviews."""
    folder = tmp_path_factory.mktemp(request.param)
    pack(sample_catalogue, folder / "shards", size=72, workers=1, text=request.param)
    return trained(folder / "shards", folder / "run", *TEXT_ONLY)


@pytest.fixture(scope="module")
def overviews(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on overviews."""
    return trained(sample_shards, tmp_path_factory.mktemp("overviews") / "run", *TEXT_ONLY)


@pytest.fixture(scope="module")
def posters(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on posters."""
    return trained(sample_shards, tmp_path_factory.mktemp("posters") / "run", "--model.text.arch", "none")


def predict(run: Path, out: Path, *more: object, code: int = 0) -> list[dict[str, Any]]:
    """Predictions of many films, by the console command."""
    assert cli.main(["predict", str(run), "--out", str(out), *map(str, more)]) == code
    return [row for part in sorted(out.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which is one line."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ---- texts


def test_predictions_read_the_text_that_the_shards_were_packed_with(
    texts: Path, sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = pq.read_table(texts / "predictions-test.parquet").to_pylist()
    films = {film["tmdb_id"]: film for film in read_rows(sample_catalogue)}
    table = pa.Table.from_pylist(
        [{name: film[name] for name in ("tmdb_id", "overview", "title")} for film in films.values()]
    )
    pq.write_table(table, tmp_path / "films.parquet")
    for place in (("--catalogue", sample_catalogue), ("--table", tmp_path / "films.parquet")):
        predicted = {row["tmdb_id"]: row["logits"] for row in predict(texts, tmp_path / place[0], *place)}
        for row in evaluated:
            assert predicted[row["tmdb_id"]] == pytest.approx(row["logits"], abs=1e-4)
    film = films[evaluated[0]["tmdb_id"]]
    capsys.readouterr()
    assert cli.main(["predict", str(texts), "--title", film["title"], "--overview", film["overview"]]) == 0
    surest = float(capsys.readouterr().out.splitlines()[0].split("%")[0]) / 100
    assert surest == pytest.approx(1 / (1 + np.exp(-max(evaluated[0]["logits"]))), abs=1e-4)


def test_a_text_that_is_missing_is_asked_for(
    texts: Path, overviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = "title and overview" if texts.parent.name.startswith("both") else "title"
    capsys.readouterr()
    assert cli.main(["predict", str(texts), "--overview", "A robot."]) == 2
    assert told(capsys) == f"error: this model was trained on {fields}; pass --title as well"
    predict(texts, tmp_path / "out", "--table", write(tmp_path / "t.csv", "tmdb_id,overview\n1,a robot\n"), code=2)
    assert "t.csv has no column 'title'; it has tmdb_id, overview. Say which" in told(capsys)
    predict(overviews, tmp_path / "out", "--table", write(tmp_path / "u.csv", "tmdb_id,title\n1,Heat\n"), code=2)
    assert "u.csv has no column 'overview'" in told(capsys)
    assert not (tmp_path / "out").exists()


# ---- cells


def test_cells_mean_what_they_mean_to_import(
    overviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [
        '862.0, "overview": "a robot"',
        '"7", "overview": NaN',
        '8, "overview": 1984',
        '9, "overview": "  "',
        "9.0",
        "11",
    ]
    table = write(tmp_path / "t.jsonl", "".join(f'{{"tmdb_id": {cell}}}\n' for cell in cells))
    rows = predict(overviews, tmp_path / "out", "--table", table)
    reasons = {row["tmdb_id"]: row["left_out"] for row in rows}
    assert reasons == {862: None, 7: "no overview", 8: None, 9: "no overview", 11: "no overview"}
    assert "1 rows with an id that was there before, left out, such as 9" in capsys.readouterr().out
    (same,) = predict(
        overviews, tmp_path / "same", "--table", write(tmp_path / "t.csv", "tmdb_id,overview\n8,1984.0\n8,x\n")
    )
    assert same["left_out"] is None


def test_columns_of_other_names_are_mapped(overviews: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "id,plot\n5,a robot\n")
    (row,) = predict(overviews, tmp_path / "out", "--table", table, "--columns", "tmdb_id=id", "overview=plot")
    assert (row["tmdb_id"], row["left_out"]) == (5, None)


NUMBERS = ("Infinity", "-1", "0", "949.7", "null")


@pytest.mark.parametrize(
    ("suffix", "cell"),
    [("parquet", cell) for cell in NUMBERS]
    + [("jsonl", cell) for cell in (*NUMBERS, str(2**70), "9" * 5000, "[1]", '"x"', "true")],
)
def test_what_is_no_id_is_told_in_one_line_with_its_row(
    overviews: Path, tmp_path: Path, suffix: str, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write(tmp_path / "t.jsonl", f'{{"tmdb_id": 5}}\n{{"tmdb_id": {cell}, "overview": "x"}}\n')
    if suffix == "parquet":
        table = tmp_path / "t.parquet"
        pq.write_table(pa.table({"tmdb_id": [5.0, json.loads(cell)], "overview": ["x", "y"]}), table)
    capsys.readouterr()
    predict(overviews, tmp_path / "out", "--table", table, code=2)
    line = told(capsys)
    assert ("row 2: " in line and "is no TMDB id" in line) or "line 2: not JSON" in line
    assert len(line) < 500


# ---- posters


def test_what_import_finds_predict_finds(
    posters: Path, sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = [film["tmdb_id"] for film in read_rows(sample_catalogue) if film["poster_status"] == "ok"][:8]
    pictures = [poster_file(sample_catalogue, film).read_bytes() for film in films]
    names = ["1.JPG", "sub/2.jpg", "3.jfif", "4", "5.jpg", "6.jpg", "7.jpg", "8.jpg"]
    for name, picture in zip(names[:5], pictures, strict=False):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(picture)
    (tmp_path / "p/5.jpg").write_bytes(b"")
    (tmp_path / "p/notes.txt").write_text("x")
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        for name, picture in zip(names[4:7], pictures[4:7], strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
        member = tarfile.TarInfo("8.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "7.jpg"
        tar.addfile(member)
    rows = "".join(f"{film},/x/{name},Drama\n" for film, name in zip(films, names, strict=True))
    table = write(tmp_path / "t.csv", f"tmdb_id,poster_path,genres\n{rows}12345,,Drama\n")
    places = ["--table", table, "--posters", tmp_path / "p", tmp_path / "p.tar", "--poster_key", "poster_path"]
    assert cli.main(["import", "--out", str(tmp_path / "catalogue"), *map(str, places)]) == 0
    counted = [line for line in capsys.readouterr().out.splitlines() if "such as" in line]
    by_table = predict(posters, tmp_path / "by_table", *places)
    assert [line for line in capsys.readouterr().out.splitlines() if "such as" in line] == counted
    by_catalogue = predict(posters, tmp_path / "by_catalogue", "--catalogue", tmp_path / "catalogue")
    assert by_table == by_catalogue
    assert [row["left_out"] for row in by_table] == [None] * 8 + ["no poster"]
    assert by_table[6]["logits"] == pytest.approx(by_table[7]["logits"], abs=1e-5)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (("--table", "TABLE", "--posters", "GZ"), "p.tar.gz is no plain tar"),
        (("--table", "TABLE", "--posters", "TABLE"), "t.csv is no plain tar"),
        (("--table", "TABLE", "--poster", "TABLE"), "--poster is for one film"),
        (("--catalogue", "CATALOGUE", "--posters", "TABLE"), "belong to a --table"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    posters: Path,
    sample_catalogue: Path,
    tmp_path: Path,
    places: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tarfile.open(tmp_path / "p.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.jpg"))
    table = write(tmp_path / "t.csv", "tmdb_id\n1\n")
    known = {"GZ": tmp_path / "p.tar.gz", "TABLE": table, "CATALOGUE": sample_catalogue}
    capsys.readouterr()
    predict(posters, tmp_path / "out", *(known.get(place, place) for place in places), code=2)
    assert words in told(capsys)


# ---- what is there already


@pytest.fixture
def small(overviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A table of 100 films, and its predictions in two parts."""
    monkeypatch.setattr(predict_many, "PART", parts_of_64.FILMS)
    table = write(
        tmp_path / "t.csv", "tmdb_id,overview\n" + "".join(f"{n},a robot war in space\n" for n in range(1, 101))
    )
    predict(overviews, tmp_path / "out", "--table", table)
    return table, tmp_path / "out"


def test_a_table_that_changed_at_equal_length_is_not_taken_for_what_it_was(
    overviews: Path, small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = small
    status = table.stat()
    table.write_text(table.read_text().replace("robot war in space", "couple in the city"))
    os.utime(table, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert table.stat().st_size == status.st_size
    capsys.readouterr()
    predict(overviews, out, "--table", table, code=2)
    assert "holds predictions with other table_sha256; choose another --out" in told(capsys)


def test_posters_that_changed_are_not_taken_for_what_they_were(
    posters: Path, sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = next(film["tmdb_id"] for film in read_rows(sample_catalogue) if film["poster_status"] == "ok")
    (tmp_path / "p").mkdir()
    places = ["--table", write(tmp_path / "t.csv", "tmdb_id\n1\n2\n"), "--posters", tmp_path / "p"]
    shutil.copy(poster_file(sample_catalogue, film), tmp_path / "p/1.jpg")
    predict(posters, tmp_path / "out", *places)
    predict(posters, tmp_path / "out", *places)
    shutil.copy(poster_file(sample_catalogue, film), tmp_path / "p/2.jpg")
    capsys.readouterr()
    predict(posters, tmp_path / "out", *places, code=2)
    assert "holds predictions with other posters_sha256" in told(capsys)


@pytest.mark.parametrize("damage", ["empty", "flipped", "other films"])
def test_a_part_that_is_damaged_or_of_other_films_is_made_again(
    overviews: Path, small: tuple[Path, Path], damage: str
) -> None:
    table, out = small
    first, second = sorted(out.glob("part-*.parquet"))
    before = pq.read_table(second)
    data = bytearray(second.read_bytes())
    data[data.index(before["logits"][0].values.buffers()[1].to_pybytes()[:4])] ^= 0x40
    second.write_bytes({"empty": b"", "flipped": bytes(data), "other films": first.read_bytes()}[damage])
    kept = first.stat().st_mtime_ns
    predict(overviews, out, "--table", table)
    assert first.stat().st_mtime_ns == kept
    assert pq.read_table(second) == before


def test_a_second_prediction_is_refused_while_the_folders_lock_is_held(
    overviews: Path, small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = small
    capsys.readouterr()
    with one_writer(out):
        predict(overviews, out, "--table", table, code=2)
    assert f"out is being written by process {os.getpid()} on " in told(capsys)


def test_a_full_disk_ends_in_one_line_and_the_next_start_goes_on(
    overviews: Path, small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = small
    before = snapshot(out)
    for part in out.glob("part-*.parquet"):
        part.unlink()
    capsys.readouterr()
    with small_disk(2000):
        predict(overviews, out, "--table", table, code=2)
    assert "part-000000.parquet" in told(capsys)
    assert {path.name for path in out.iterdir()} == {".lock", "prediction.json"}
    predict(overviews, out, "--table", table)
    assert snapshot(out)["part-000001.parquet"] == before["part-000001.parquet"]


# ---- TMDB


def test_an_answer_of_tmdb_with_other_types_is_told_in_one_line(
    overviews: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMDB_API_KEY", KEY)
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.01)
    answers: list[dict[str, Any]] = [{"overview": 5}, {"title": ["x"]}, {"poster_path": {"a": 1}}, {"id": 2**63}]
    with serve(films=20) as server:
        films = [10, 11, 13, 14]
        server.control(films={str(film): answer for film, answer in zip(films, answers, strict=True)})
        for film, answer in zip(films, answers, strict=True):
            capsys.readouterr()
            urls = ["--api_url", server.url, "--image_url", f"{server.url}/t/p"]
            assert cli.main(["predict", str(overviews), "--tmdb_id", str(film), *urls]) == 2
            line = told(capsys)
            assert f"film {film} cannot be had from TMDB: " in line
            assert next(iter(answer)) in line
