"""Anyone's tars, from the listing to predictions, without packing: commands as typed, training on two ranks."""

import csv
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import Processes, options

from genre_dist.catalogue.sample_tables import make_table
from genre_dist.cli import main
from genre_dist.sample_ids import number_of_id
from genre_dist.stream.manifest import load_manifest
from genre_dist.tars.sample_reader import reader_type

SHORT = ("--train.epochs", 6, "--data.global_batch", 16, "--model.text.pooling", "max")
FAST = ("--optim.text_lr", 0.02, "--optim.heads_lr", 0.02, "--optim.warmup_steps", 5)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products in three tars, their texts in .txt, their category and price in .json; half of them have an image."""
    folder = tmp_path_factory.mktemp("products")
    make_table("products", 240, 3, folder / "drawn")
    with (folder / "drawn" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for part in range(3):
        with tarfile.open(folder / f"{part:05d}.tar", "w") as tar:
            for row in rows[part::3]:
                about = json.dumps({"category": row["category"], "price": float(row["price"])})
                for extension, content in (("txt", row["description"]), ("json", about)):
                    (folder / "member").write_text(content)
                    tar.add(folder / "member", f"{row['sku']}.{extension}")
                if (image := folder / "drawn" / "images" / f"{row['sku']}.jpg").exists():
                    tar.add(image, f"{row['sku']}.jpg")
    (folder / "member").unlink()
    columns = ("--labels", "json.category", "--choose", "one", "--text", "txt", "--numbers", "json.price", "--image")
    assert (
        main(["index", str(folder), "--out", str(folder / "listing"), "--size", "40", "--workers", "1", *columns]) == 0
    )
    return folder / "listing"


@pytest.fixture(scope="module")
def run(listing: Path) -> Path:
    """A run on two ranks, started by torchrun."""
    folder = listing.parent / "runs" / "net"
    with Processes(listing.parent / "log") as ranks:
        ranks.start_torchrun(2, options(listing, folder, *SHORT, *FAST))
        ranks.succeed()
    return folder


def test_every_sample_of_a_split_is_evaluated_once_under_its_key(run: Path, listing: Path) -> None:
    manifest = load_manifest(listing)
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    table = pq.read_table(run / "predictions-test.parquet").to_pylist()
    stored = reader_type(manifest)(manifest, "test", (), 1).index.all_ids().tolist()
    assert [number_of_id(row["id"]) for row in table] == stored
    assert all(row["id"].startswith("sku-") for row in table)
    figures = json.loads((run / "metrics-test.json").read_text())
    assert figures["samples"] == manifest.samples("test") > manifest.samples("test", ("image",))
    assert figures["accuracy"] > 0.6


def test_rows_with_the_same_columns_are_predicted(run: Path, listing: Path, tmp_path: Path) -> None:
    words = {"mugs": "With tea and handle.", "lamps": "With bulb and shade.", "shelves": "With oak and screws."}
    rows = [{"__key__": name, "txt": text, "json.price": 20} for name, text in words.items()]
    (tmp_path / "new.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["predict", str(run), "--table", str(tmp_path / "new.jsonl"), "--out", str(tmp_path / "out")]) == 0
    table = pq.read_table(tmp_path / "out" / "part-000000.parquet").to_pylist()
    assert [row["id"] for row in table] == list(words)
    assert sum(row["labels"] == [row["id"]] for row in table) >= 2


def test_frozen_encoders_are_computed_once_beside_the_run_and_no_tar_is_touched(listing: Path) -> None:
    tars = {path: path.read_bytes() for path in listing.parent.glob("*.tar")}
    folder = listing.parent / "runs" / "frozen"
    whole = ("--model.text.arch", "none", "--model.numbers.arch", "none", "--model.poster.frozen", "true")
    plain = ("--data.crop_scale", "[1, 1]", "--data.crop_ratio", "[1, 1]", "--train.epochs", "1")
    with Processes(listing.parent / "log_frozen") as ranks:
        ranks.start_ranks(2, options(listing, folder, *whole, *plain))
        ranks.succeed()
        assert "the heads train on the frozen encoders' encodings" in ranks.output()
    assert {path: path.read_bytes() for path in listing.parent.glob("*.tar")} == tars
    (encodings,) = (folder.parent / "encodings").iterdir()
    manifest = load_manifest(encodings)
    assert manifest.samples("train", ("image",)) == load_manifest(listing).samples("train", ("image",))


def test_pages_and_checks_take_the_listing_as_packed_shards(
    run: Path, listing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(listing), "--verify"]) == 0
    assert "samples of 3 tars where they lie" in capsys.readouterr().out
    assert main(["compare", str(run), "--out", str(tmp_path / "report"), "--resamples", "50"]) == 0
    assert main(["explain", str(run), "--out", str(tmp_path / "explanation"), "--count", "2"]) == 0
    assert main(["explore", str(listing), "--out", str(tmp_path / "explored")]) == 0
    svm = str(tmp_path / "svm")
    assert main(["baseline", str(listing), "--out", svm, "--kind", "svm_bow", "--workers", "1"]) == 0
    html = (tmp_path / "explanation" / "index.html").read_text()
    assert "sku-" in html
