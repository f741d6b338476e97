"""A user trains on films of which some lack a poster or an overview, and asks the model about any film."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import options, rows

from genre_dist import cli
from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import load_manifest
from genre_dist.train import main as train_main

FIELDS = ("overview", "poster")


@pytest.fixture(scope="module")
def trained(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of all films and a run on them, by commands without a word on missing fields."""
    folder = tmp_path_factory.mktemp("lacking")
    pack = ["pack", "--catalogue", str(sample_catalogue), "--out", str(folder / "shards"), "--size", "40"]
    assert cli.main([*pack, "--require", "", "--workers", "1"]) == 0
    assert train_main(options(folder / "shards", folder / "run", "--data.global_batch", 32, "--train.steps", 12)) == 0
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main([*words]) == 0
    return capsys.readouterr().out


def test_every_film_with_one_of_the_fields_is_evaluated_and_measured_by_what_it_has(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = load_manifest(trained / "shards")
    out = said(capsys, "evaluate", str(trained / "run"), "--split", "train")
    told = json.loads((trained / "run" / "metrics-train.json").read_text())
    patterns = manifest.patterns("train", FIELDS)
    assert told["films"] == manifest.samples("train", FIELDS, any_of=True)
    assert told["left_out"] == patterns[()]
    named = {"overview and poster": FIELDS, "only overview": ("overview",), "only poster": ("poster",)}
    counts = {name: patterns[fields] for name, fields in named.items()}
    assert {name: row["films"] for name, row in told["by_fields"].items()} == counts
    assert "only" in out
    last = rows(trained / "run", "val")[-1]
    assert last["films"] == manifest.samples("val", FIELDS, any_of=True)


def test_one_film_is_predicted_from_what_it_has(
    trained: Path, sample_catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = next(row for row in read_rows(sample_catalogue) if row["poster_status"] == "ok" and row["overview"])
    poster, text = ["--poster", str(poster_file(sample_catalogue, film["tmdb_id"]))], ["--overview", film["overview"]]
    told = [said(capsys, "predict", str(trained / "run"), *given) for given in ([*poster, *text], poster, text)]
    assert len(set(told)) == 3
    assert all(len(answer.splitlines()) == 19 for answer in told)
    assert cli.main(["predict", str(trained / "run")]) == 2
    assert "pass --poster or --overview as well" in capsys.readouterr().err


def test_of_many_films_only_those_without_any_field_are_left_out(
    trained: Path, sample_catalogue: Path, tmp_path: Path
) -> None:
    assert (
        cli.main(["predict", str(trained / "run"), "--catalogue", str(sample_catalogue), "--out", str(tmp_path)]) == 0
    )
    table = pq.read_table(tmp_path / "part-000000.parquet").to_pylist()
    films = {row["tmdb_id"]: row for row in read_rows(sample_catalogue)}
    for row in table:
        film = films[row["tmdb_id"]]
        lacks_all = film["poster_status"] != "ok" and not film["overview"]
        assert (row["left_out"] is not None) == lacks_all, row
        assert (row["logits"] is None) == lacks_all


def test_a_film_without_a_poster_is_explained_by_its_words(trained: Path, tmp_path: Path) -> None:
    manifest = load_manifest(trained / "shards")
    index = SplitIndex(manifest, "train", ("overview",))
    records = np.concatenate([index.records(index.rows_of(number)) for number in range(len(index.sizes))])
    film = int(records["id"][(records["has"] & 1) == 0][0])
    explain = ["explain", str(trained / "run"), "--split", "train", "--films", str(film), "--out", str(tmp_path)]
    assert cli.main(explain) == 0
    told = json.loads((tmp_path / "explanation.json").read_text())
    (only,) = told["films"]
    assert not any(genre["on_poster"] for genre in only["explained"])
    assert all(genre["words"] for genre in only["explained"])
    assert set(told["ablation"]["loss_without"]) == {"text", "poster"}
