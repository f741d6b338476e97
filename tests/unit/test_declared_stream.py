"""Shards of a declared data set as a trainer reads them: two texts, an image and numbers, ids of any form."""

import csv
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from products import SCHEMA
from test_importing import make_table

from genre_dist.catalogue.importing_samples import import_samples
from genre_dist.catalogue.sample_tables import make_table as make_drawn
from genre_dist.cli import main
from genre_dist.config import Config, DataConfig, HeadsConfig, ModelConfig, NumbersConfig, PosterConfig, TextConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.packing.pack import pack
from genre_dist.sample_ids import number_of_id
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.stream.index import index_path
from genre_dist.stream.loader import evaluation_stream
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader

FIELDS = tuple(SCHEMA.by_name)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Rows of a table by id; some lack a description, some a number or both."""
    make_drawn("products", 90, 5, folder := tmp_path_factory.mktemp("drawn"))
    with (folder / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for number, row in enumerate(table):
        row["description"] = "" if number % 4 == 0 else row["description"]
        row["price"] = "" if number % 5 == 0 else row["price"]
        row["weight"] = "" if number % 10 == 0 else row["weight"]
        row["images"] = str(folder / "images")
    return {row["sku"]: row for row in table}


@pytest.fixture(scope="module")
def shards(rows: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("declared")
    images = Path(next(iter(rows.values()))["images"])
    table = make_table(folder / "table.jsonl", [row | {"images": ""} for row in rows.values()])
    import_samples(table, SCHEMA, {"front": [images]}, folder / "catalogue")
    pack(folder / "catalogue", folder / "shards", workers=1, size=40, shard_size=30)
    return folder / "shards"


@pytest.fixture(scope="module")
def manifest(shards: Path) -> Manifest:
    return load_manifest(shards)


def everything(manifest: Manifest, split: str = "train", workers: int = 0) -> Batch:
    """All samples of a split in one batch."""
    reader = ShardReader(manifest, split, FIELDS, 64, any_of=True)
    with closing(evaluation_stream(reader, batch=200, workers=workers)) as batches:
        batch = next(batches)
        return batch.each(np.copy)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_has_ids_labels_and_each_field_of_the_rows(
    workers: int, manifest: Manifest, rows: dict[str, dict[str, Any]]
) -> None:
    batch = everything(manifest, workers=workers)
    classes = [label.name for label in manifest.genres]
    moments = manifest.numbers["facts"]
    assert batch.ids.tolist() == [number_of_id(id) for id in batch.samples]
    assert set(batch.samples) <= set(rows)
    for number, id in enumerate(batch.samples):
        row = rows[id]
        assert [classes[at] for at in np.flatnonzero(batch.labels[number])] == [row["category"]]
        assert batch.arrays["about.has"][number] == bool(row["description"])
        assert (batch.arrays["about.lengths"][number] > 0) == bool(row["description"])
        wanted = [float(row[name]) if row[name] else math.nan for name in ("price", "weight")]
        standardised = (np.array(wanted) - moments["mean"]) / moments["std"]
        np.testing.assert_allclose(batch.arrays["facts.numbers"][number], standardised, rtol=1e-4)
        assert batch.arrays["facts.has"][number] == (not all(map(math.isnan, wanted)))
        has_image = (Path(row["images"]) / f"{id}.jpg").exists()
        assert batch.arrays["front.has"][number] == has_image
        assert ((batch.arrays["front.images"][number] == 128).all()) == (not has_image)


def test_two_texts_have_an_encoder_each_and_missing_numbers_no_nan(manifest: Manifest) -> None:
    model = GenreClassifier(
        ModelConfig(
            missing="learn",
            text=TextConfig(hidden=8, layers=1, embedding_dim=6),
            poster=PosterConfig(arch="resnet18", weights="none"),
            numbers=NumbersConfig(hidden=4),
            heads=HeadsConfig(hidden=(8,)),
        ),
        len(manifest.genres),
        32,
        manifest.text["words"],
        None,
        schema=manifest.declared,
    )
    assert model.parts == ("title", "about", "front", "facts")
    inputs = to_device(everything(manifest), torch.device("cpu"), whole_pixels(DataConfig(image_size=32)))
    logits = model(inputs.fields)
    assert logits.shape == (inputs.samples, 3)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert Config().model.fields(manifest.declared)[-1].name == "facts"


def test_a_lost_index_is_made_again_from_the_tars(shards: Path, manifest: Manifest) -> None:
    path = index_path(shards / manifest.shards_of("train")[0].file)
    before = path.read_bytes()
    assert isinstance(path, Path)
    path.unlink()
    assert main(["index", str(shards)]) == 0
    assert path.read_bytes() == before


def test_the_order_is_printed_by_the_ids_of_the_table(
    shards: Path, rows: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["order", str(shards), "--global_batch", "16", "--steps", "0:2"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert set(line.split("\t")[1].split()) <= set(rows)


def test_a_damaged_sample_is_named_by_its_id(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    reader = ShardReader(load_manifest(copy), "train", ("title",), 64)
    records = reader.index.records(Rows(np.zeros(1, np.int64), np.zeros(1, np.int64)))
    id = reader.keys(Rows(np.zeros(1, np.int64), np.zeros(1, np.int64)))[0]
    path = copy / manifest.shards_of("train")[0].file
    data = bytearray(path.read_bytes())
    start = data.index(b'"labels"', int(records["offset"][0]))
    data[start : start + 8] = b'"xabels"'
    path.write_bytes(data)
    batch = reader.read(Rows(np.zeros(1, np.int64), np.zeros(1, np.int64)))
    assert batch.weights.tolist() == [0]
    assert f"product {id} at byte" in batch.faults[0]
    assert "no list of labels" in batch.faults[0]
