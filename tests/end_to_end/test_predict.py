"""Predictions at scale: catalogues and tables, several ranks, stopped and gone on; and one film by its TMDB id."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import parts_of_64
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from acquire_server import KEY, Handle, serve
from helpers import Processes, options, snapshot, until

from genre_dist import cli, storage
from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.inference import predict_many
from genre_dist.metrics.thresholds import load_thresholds
from genre_dist.train import main as train_main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sample_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "run"
    assert train_main(options(sample_shards, folder, "--data.global_batch", 32, "--train.steps", 2)) == 0
    return folder


@pytest.fixture(scope="module")
def predicted(run: Path, sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole catalogue, predicted by one process in parts of 64."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_many, "PART", parts_of_64.FILMS)
        assert cli.main(["predict", str(run), "--catalogue", str(sample_catalogue), "--out", str(out)]) == 0
    return out


def rows_of(out: Path) -> list[dict]:
    return [row for part in sorted(out.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def test_every_film_of_a_catalogue_has_its_row_and_says_why_it_has_no_prediction(
    predicted: Path, run: Path, sample_catalogue: Path
) -> None:
    films, rows = list(read_rows(sample_catalogue)), rows_of(predicted)
    assert [row["tmdb_id"] for row in rows] == [film["tmdb_id"] for film in films]
    genres = json.loads((predicted / "prediction.json").read_text())["genres"]
    thresholds = load_thresholds(run, genres)
    for film, row in zip(films, rows, strict=True):
        has_poster, has_text = film["poster_status"] == "ok", bool(film["overview"])
        reason = None if has_poster and has_text else "no overview" if has_poster else "no poster"
        assert row["left_out"] == reason
        if reason is None:
            assert row["probabilities"] == pytest.approx(1 / (1 + np.exp(-np.array(row["logits"]))), abs=1e-6)
            named = {genre for genre, above in zip(genres, row["logits"] > thresholds, strict=True) if above}
            assert set(row["genres"]) == named
            order = [row["probabilities"][genres.index(genre)] for genre in row["genres"]]
            assert order == sorted(order, reverse=True)
        else:
            assert row["logits"] is row["genres"] is None
    assert any(row["left_out"] for row in rows)
    assert any(row["genres"] for row in rows)


def test_one_film_by_its_files_gets_the_same_probabilities_and_marks_what_is_named(
    predicted: Path, run: Path, sample_catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = next(row for row in rows_of(predicted) if row["genres"])
    (film,) = [film for film in read_rows(sample_catalogue) if film["tmdb_id"] == row["tmdb_id"]]
    poster = str(poster_file(sample_catalogue, film["tmdb_id"]))
    capsys.readouterr()
    assert cli.main(["predict", str(run), "--poster", poster, "--overview", film["overview"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_field = ["--field", f"poster={poster}", "--field", f"overview={film['overview']}"]
    assert cli.main(["predict", str(run), *by_field]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    named = [line.split("%  ")[1].removesuffix("  named") for line in lines if line.endswith("  named")]
    assert named == row["genres"]
    assert float(lines[0].split("%")[0]) / 100 == pytest.approx(max(row["probabilities"]), abs=1e-4)


def test_two_ranks_that_go_on_where_one_was_stopped_write_what_one_writes(
    predicted: Path, run: Path, sample_catalogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(predicted, out)
    before = snapshot(out)
    for part in ("part-000001.parquet", "part-000003.parquet"):
        (out / part).unlink()
    (out / "part-000001.parquet.host-1-0123abcd.tmp").write_bytes(b"what a kill leaves")
    arguments = ["predict", str(run), "--catalogue", str(sample_catalogue), "--out", str(out)]
    with Processes(tmp_path / "log") as ranks:
        ranks.start_ranks(2, arguments, module="parts_of_64")
        ranks.succeed(90)
    after = snapshot(out)
    assert after.keys() == before.keys()
    kept = [name for name in before if name not in ("part-000001.parquet", "part-000003.parquet", ".lock")]
    assert all(after[name] == before[name] for name in kept)
    for one, other in zip(rows_of(out), rows_of(predicted), strict=True):
        assert one["tmdb_id"] == other["tmdb_id"]
        assert one["left_out"] == other["left_out"]
        if one["logits"]:
            assert one["logits"] == pytest.approx(other["logits"], abs=1e-4)


def test_a_rank_may_predict_for_longer_than_the_others_wait_for_it(
    predicted: Path, run: Path, sample_catalogue: Path, tmp_path: Path
) -> None:
    arguments = ["predict", str(run), "--catalogue", str(sample_catalogue), "--out", str(tmp_path / "out")]
    with Processes(tmp_path / "log") as ranks:
        ranks.start_ranks(2, arguments, module="slow_predictions")
        ranks.succeed(90)
    assert [row["tmdb_id"] for row in rows_of(tmp_path / "out")] == [row["tmdb_id"] for row in rows_of(predicted)]


def test_killed_in_the_middle_the_same_command_goes_on_and_keeps_what_is_whole(
    predicted: Path, run: Path, sample_catalogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["predict", str(run), "--catalogue", str(sample_catalogue), "--out", str(out)]
    with Processes(tmp_path / "log") as killed:
        killed.fork("parts_of_64", arguments)
        until(lambda: any(out.glob("part-*.parquet")) or killed.over(), 90, "the first part")
        killed.kill()
        assert killed.wait() == [-signal.SIGKILL], killed.output()
    whole = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 1 <= len(whole) < len(list(predicted.glob("part-*.parquet")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_many, "PART", parts_of_64.FILMS)
        assert cli.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert [row["tmdb_id"] for row in rows_of(out)] == [row["tmdb_id"] for row in rows_of(predicted)]
    for one, other in zip(rows_of(out), rows_of(predicted), strict=True):
        assert one["left_out"] == other["left_out"]
        assert not one["logits"] or one["logits"] == pytest.approx(other["logits"], abs=1e-4)


def test_a_table_and_a_folder_of_posters_do_as_well(
    predicted: Path, run: Path, sample_catalogue: Path, tmp_path: Path
) -> None:
    wanted = [row for row in rows_of(predicted) if row["logits"]][:5]
    films = {film["tmdb_id"]: film for film in read_rows(sample_catalogue)}
    (tmp_path / "posters").mkdir()
    for row in wanted:
        shutil.copy(poster_file(sample_catalogue, row["tmdb_id"]), tmp_path / "posters" / f"{row['tmdb_id']}.jpg")
    (tmp_path / "posters" / f"{wanted[0]['tmdb_id']}.jpg").write_bytes(b"no image")
    table = pa.table(
        {
            "tmdb_id": [row["tmdb_id"] for row in wanted],
            "overview": [films[row["tmdb_id"]]["overview"] for row in wanted],
        }
    )
    pa.csv.write_csv(table, tmp_path / "films.csv")
    given = ["--table", str(tmp_path / "films.csv"), "--posters", str(tmp_path / "posters")]
    assert cli.main(["predict", str(run), *given, "--out", str(tmp_path / "out")]) == 0
    found = rows_of(tmp_path / "out")
    assert "not a whole image" in found[0]["left_out"]
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert one["logits"] == pytest.approx(other["logits"], abs=1e-4)


@pytest.mark.parametrize(
    ("options_", "words"),
    [
        (["--out", "OUT"], "--catalogue FOLDER, or --table FILE"),
        (["--catalogue", "CATALOGUE"], "--out FOLDER"),
        (["--catalogue", "CATALOGUE", "--out", "PREDICTED"], "films_per_part"),
        (["--catalogue", "CATALOGUE", "--out", "RUN"], "holds no predictions"),
        (["--table", "nowhere.csv", "--out", "OUT"], "nowhere.csv"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    options_: list[str],
    words: str,
    run: Path,
    predicted: Path,
    sample_catalogue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"OUT": tmp_path / "out", "CATALOGUE": sample_catalogue, "PREDICTED": predicted, "RUN": run}
    capsys.readouterr()
    assert cli.main(["predict", str(run), *(str(places.get(option, option)) for option in options_)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


# --- by TMDB id


@pytest.fixture(scope="module")
def tmdb() -> Iterator[Handle]:
    with serve(films=20, poster_share=1.0) as server:
        yield server


def asked(server: Handle, run: Path, film: int) -> int:
    urls = ["--api_url", server.url, "--image_url", f"{server.url}/t/p"]
    return cli.main(["predict", str(run), "--tmdb_id", str(film), *urls])


def test_a_film_of_tmdb_is_predicted_from_what_tmdb_knows(
    tmdb: Handle, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMDB_API_KEY", KEY)
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.01)
    tmdb.control(set={"rules": [{"path": "/3/movie", "do": "500", "times": 1}]}, forget=True)
    capsys.readouterr()
    assert asked(tmdb, run, 10) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "Film 10 — Amélie"
    assert len(lines) == 20
    paths = tmdb.control()["paths"]
    assert paths == {"/3/movie/10": 2, "/t/p/w342/poster-10.jpg": 1}
    assert KEY not in said.out + said.err


def test_a_film_that_tmdb_does_not_have_and_a_missing_key_are_told(
    tmdb: Handle, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMDB_API_KEY", KEY)
    tmdb.control(set={"rules": []}, forget=True)
    capsys.readouterr()
    assert asked(tmdb, run, 999) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "film 999" in line
    assert "404" in line
    monkeypatch.delenv("TMDB_API_KEY")
    assert asked(tmdb, run, 10) == 2
    assert "TMDB_API_KEY" in capsys.readouterr().err
