"""A user trains on films of which some lack a poster or an overview, and asks the model about any film."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import Processes, options, rows, snapshot
from lacking_films import write_lacking

from genre_dist import cli
from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.config import DataConfig
from genre_dist.inference.trained_model import load_run
from genre_dist.metrics.derived import read_derived
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.train import main as train_main

FIELDS = ("overview", "poster")


@pytest.fixture(scope="module")
def trained(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of all films and a run on them, by commands without a word on missing fields."""
    folder = tmp_path_factory.mktemp("lacking")
    catalogue = write_lacking(sample_catalogue, folder / "catalogue")
    pack = ["pack", "--catalogue", str(catalogue), "--out", str(folder / "shards"), "--size", "40"]
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


# ---- with a field hidden


@pytest.fixture(scope="module")
def hidden(trained: Path) -> Path:
    """The evaluation of the run with its posters hidden; the run is as it was before."""
    before = snapshot(trained / "run")
    out = trained / "no_poster"
    assert cli.main(["evaluate", str(trained / "run"), "--hide", "poster", "--out", str(out), "--split", "test"]) == 0
    assert snapshot(trained / "run") == before
    return out


@pytest.mark.parametrize("split", ["val", "test"])
def test_with_posters_hidden_films_are_predicted_as_if_none_was_packed(trained: Path, hidden: Path, split: str) -> None:
    manifest = load_manifest(trained / "shards")
    reader = ShardReader(manifest, split, FIELDS, 1024)  # only films with both
    sizes = enumerate(reader.index.sizes)
    batch = reader.read(Rows(*map(np.concatenate, zip(*(reader.index.rows_of(n) for n, _ in sizes), strict=True))))
    batch.arrays |= {"text.has": np.ones(len(batch.ids), bool), "poster.has": np.zeros(len(batch.ids), bool)}
    run = load_run(trained / "run", torch.device("cpu"))
    with torch.no_grad():
        expected = run.model(to_device(batch, torch.device("cpu"), whole_pixels(DataConfig(image_size=32))).fields)
    table = pq.read_table(hidden / f"predictions-{split}.parquet")
    assert table["tmdb_id"].to_pylist() == batch.ids.tolist()
    np.testing.assert_allclose(table["logits"].to_pylist(), expected.numpy(), atol=1e-4)
    figures = json.loads((hidden / f"metrics-{split}.json").read_text())
    assert figures["left_out"] == manifest.samples(split) - len(batch.ids) > 0
    chances = 1 / (1 + np.exp(-expected.numpy().astype(float)))
    right = np.where(batch.labels > 0, chances, 1 - chances)
    assert figures["loss"] == pytest.approx(-np.log(right).mean(), abs=1e-4)


def test_thresholds_are_fitted_on_all_val_films_that_keep_a_field(trained: Path, hidden: Path) -> None:
    manifest = load_manifest(trained / "shards")
    fitted = json.loads((hidden / "thresholds.json").read_text())
    assert fitted["films"] == manifest.samples("val", ("overview",)) > manifest.samples("val", FIELDS)


def test_the_folder_says_what_was_hidden_and_of_which_files(trained: Path, hidden: Path) -> None:
    derived = read_derived(hidden)
    assert derived is not None
    assert (derived["kind"], derived["hidden"], derived["of"]) == ("hidden", ["poster"], [str(trained / "run")])
    assert derived["title"] == "Poster hidden from run"
    assert derived["data_fingerprint"] == load_manifest(trained / "shards").fingerprint
    assert [set(files) for files in derived["made_from"]] == [{"model.json", "model.safetensors"}]


def test_two_ranks_hide_a_field_as_one_does(trained: Path, hidden: Path, tmp_path: Path) -> None:
    command = ["evaluate", str(trained / "run"), "--hide", "poster", "--out", str(tmp_path / "two"), "--split", "test"]
    with Processes(tmp_path / "log") as ranks:
        ranks.start_torchrun(2, command, module="genre_dist.cli")
        ranks.succeed()
    one, two = (pq.read_table(folder / "predictions-test.parquet") for folder in (hidden, tmp_path / "two"))
    assert two["tmdb_id"].to_pylist() == one["tmdb_id"].to_pylist()
    np.testing.assert_allclose(two["logits"].to_pylist(), one["logits"].to_pylist(), atol=1e-4)
    assert read_derived(tmp_path / "two") == read_derived(hidden)


def test_an_unfinished_one_is_made_again_and_a_finished_one_replaced(
    trained: Path, hidden: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions-val.parquet").write_bytes(b"cut short")
    for field in ("poster", "overview"):
        assert cli.main(["evaluate", str(trained / "run"), "--hide", field, "--out", str(out)]) == 0
        assert (read_derived(out) or {}).get("hidden") == [field]
    assert not (out / "predictions-test.parquet").exists()  # val was asked for


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--hide", "poster"], "--hide FIELD and --out FOLDER go together"),
        (["--out", "OUT"], "--hide FIELD and --out FOLDER go together"),
        (["--hide", "poster", "--out", "RUN"], "checkpoints and so belongs to something else: choose a new --out"),
        (["--hide", "title", "--out", "OUT"], "title cannot be hidden: the model takes overview and poster"),
    ],
)
def test_what_cannot_be_hidden_is_refused(
    arguments: list[str], problem: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"OUT": str(tmp_path / "out"), "RUN": str(trained / "run")}
    capsys.readouterr()
    assert cli.main(["evaluate", str(trained / "run"), *(places.get(one, one) for one in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (("--model.missing", "leave_out"), "train it with model.missing=learn"),
        (("--model.poster.arch", "none"), "poster cannot be hidden: the model takes overview"),
        (("--model.text.arch", "none"), "the model takes no other field"),
    ],
)
def test_a_model_that_cannot_do_without_the_field_is_refused(
    setting: tuple[str, ...], problem: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_main(options(trained / "shards", run, *setting, "--data.global_batch", 8, "--train.steps", 1)) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--hide", "poster", "--out", str(tmp_path / "out")]) == 2
    assert problem in capsys.readouterr().err
