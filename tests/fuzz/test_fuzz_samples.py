"""Fuzzing of declared data sets: schemas in YAML and JSON, tables of anything, their catalogues and shards."""

import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import ANY_JSON, MOST_BYTES, damaged, odd_json, told_or_read, within_memory
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genre_dist.catalogue.catalogue import samples_file
from genre_dist.catalogue.importing_samples import import_samples
from genre_dist.catalogue.sample_rows import RowReader
from genre_dist.catalogue.samples import load_catalogue_schema, read_samples, schema_file
from genre_dist.catalogue.schema_file import load_classes, load_schema
from genre_dist.packing.pack import pack
from genre_dist.packing.shard_report import SampleReport, read_report
from genre_dist.packing.verification import verify
from genre_dist.schema import Field, Labels, Schema
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import Rows
from genre_dist.tars.sample_reader import reader_type
from genre_dist.tars.tar_listing import TarOptions, list_samples

DECLARED: dict[str, Any] = {
    "id": "sku",
    "split_by": "shop",
    "labels": {"column": "kind", "classes": ["a", "b"], "choose": "many"},
    "fields": {
        "text": {"kind": "text", "columns": ["title", "about"]},
        "facts": {"kind": "numbers", "columns": ["price"]},
    },
    "sample": "product",
}
SCHEMA = Schema(
    id="sku",
    split_by="shop",
    labels=Labels(column="kind"),
    fields=(
        Field(name="text", kind="text", columns=("title",)),
        Field(name="facts", kind="numbers", columns=("price", "weight")),
    ),
)
ROWS = [
    {"sku": f"s{n}", "shop": f"shop {n % 2}", "kind": ["a", "b"][n % 2], "title": "A shoe", "price": n, "weight": None}
    for n in range(5)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(written=odd_json(DECLARED))  # JSON is YAML
def test_an_odd_schema_is_read_or_told(folder: Path, written: bytes) -> None:
    path = folder / "schema.yaml"
    path.write_bytes(written)
    told_or_read(lambda: load_schema(path), path)


@given(data=st.data())
def test_a_damaged_schema_is_read_or_told(folder: Path, data: st.DataObject) -> None:
    path = folder / "schema.yaml"
    path.write_bytes(data.draw(damaged(json.dumps(DECLARED, indent=1).encode())))
    told_or_read(lambda: load_schema(path), path)


@given(written=st.binary(max_size=60) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file_of_classes_is_read_or_told(folder: Path, written: bytes) -> None:
    path = folder / "classes.txt"
    path.write_bytes(written)
    told_or_read(lambda: load_classes(path), path)


@given(rows=st.lists(st.dictionaries(st.sampled_from(list(ROWS[0])), ANY_JSON), min_size=1, max_size=4))
def test_rows_of_anything_are_imported_or_told(folder: Path, rows: list[dict[str, Any]]) -> None:
    path, out = folder / "table.jsonl", folder / "catalogue"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *(ROWS[0] | {"sku": "x"} | row for row in rows)]))
    report = told_or_read(lambda: import_samples(path, SCHEMA, {}, out, overwrite=True), path)
    if report is not None:
        assert load_catalogue_schema(out) == report.schema
        assert len(list(read_samples(out, report.schema))) == report.samples


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> tuple[Path, Schema]:
    path = folder / "whole.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "whole", import_samples(path, SCHEMA, {}, folder / "whole").schema


@pytest.fixture(scope="module")
def whole(catalogue: tuple[Path, Schema]) -> tuple[bytes, bytes]:
    return samples_file(catalogue[0]).read_bytes(), schema_file(catalogue[0]).read_bytes()


@given(data=st.data())
def test_a_damaged_catalogue_is_read_or_told(
    catalogue: tuple[Path, Schema], whole: tuple[bytes, bytes], data: st.DataObject
) -> None:
    path = samples_file(catalogue[0])
    path.write_bytes(data.draw(damaged(whole[0])))
    rows = told_or_read(lambda: list(read_samples(*catalogue)), path)
    assert rows is None or [row["id"] for row in rows] == [row["sku"] for row in ROWS]


KINDS = st.sampled_from(
    [
        *(pa.int8(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.list_(pa.string()), pa.null()),
        *(pa.list_(pa.float32()), pa.list_(pa.int64()), pa.list_(pa.list_(pa.string())), pa.binary()),
    ]
)
COLUMNS = ("id", "split_by", "labels", "text", "facts")


@given(kinds=st.fixed_dictionaries({}, optional=dict.fromkeys(COLUMNS, KINDS)), rows=st.integers(0, 3))
def test_a_catalogue_of_other_columns_is_read_or_told(
    catalogue: tuple[Path, Schema], kinds: dict[str, pa.DataType], rows: int
) -> None:
    path = samples_file(catalogue[0])
    columns: dict[str, Any] = {"id": ["x"] * rows, "split_by": ["x"] * rows, "labels": [["a"]] * rows}
    columns |= {"text": ["x"] * rows, "facts": [[1.0, 2.0]] * rows}
    pq.write_table(pa.table(columns | {name: pa.nulls(rows, kind) for name, kind in kinds.items()}), path)
    told_or_read(lambda: list(read_samples(*catalogue)), path)


@given(written=odd_json(SCHEMA.to_dict() | {"labels": {"column": "c", "classes": ["a", "b"], "choose": "one"}}))
def test_an_odd_schema_of_a_catalogue_is_read_or_told(catalogue: tuple[Path, Schema], written: bytes) -> None:
    path = schema_file(catalogue[0])
    path.write_bytes(written)
    told_or_read(lambda: load_catalogue_schema(catalogue[0]), path)


# ---- shards


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    table = folder / "packed.jsonl"
    table.write_text("".join(json.dumps(row | {"shop": row["sku"]}) + "\n" for row in ROWS))
    import_samples(table, SCHEMA, {}, folder / "to-pack")
    pack(folder / "to-pack", folder / "shards")
    return folder / "shards"


@given(data=st.data())
def test_an_odd_manifest_is_read_or_told(shards: Path, folder: Path, data: st.DataObject) -> None:
    (folder / "odd").mkdir(exist_ok=True)
    path = folder / "odd" / "manifest.json"
    path.write_bytes(data.draw(odd_json(json.loads((shards / "manifest.json").read_bytes()))))
    told_or_read(lambda: load_manifest(path.parent), path)
    told_or_read(lambda: load_manifest(path.parent), path)


@given(data=st.data())
def test_an_odd_report_is_read_or_told(shards: Path, folder: Path, data: st.DataObject) -> None:
    (written, *_) = sorted(shards.glob("*.report.json"))
    path = folder / written.name
    path.write_bytes(data.draw(odd_json(json.loads(written.read_bytes()))))
    tar = path.with_name(path.name.replace(".report.json", ".tar"))
    told_or_read(lambda: read_report(tar, SampleReport), path)


@given(data=st.data())
def test_a_damaged_shard_is_found_by_verify(shards: Path, folder: Path, data: st.DataObject) -> None:
    (written, *_) = sorted(shards.glob("*.tar"))
    copy = folder / "damaged"
    copy.mkdir(exist_ok=True)
    for path in shards.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    changed = data.draw(damaged(written.read_bytes()))
    (copy / written.name).write_bytes(changed)
    faults = told_or_read(lambda: verify(load_manifest(copy)), written.name)
    assert bool(faults) == (changed != written.read_bytes())
    assert not any("\n" in fault for fault in faults or ())


# ---- tars to train on ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of samples and what lists it. What is damaged in it is made whole again."""
    folder = tmp_path_factory.mktemp("listed")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(24):
            image = io.BytesIO()
            Image.new("RGB", (9 + number, 12), (number, 99, 7)).save(image, "JPEG" if number % 2 else "PNG")
            about = json.dumps({"kind": "ab"[number % 2], "price": number}).encode()
            for extension, data in (("jpg", image.getvalue()), ("json", about), ("txt", b"a shoe")):
                info = tarfile.TarInfo(f"k{number}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    list_tar(folder)
    return folder


def list_tar(folder: Path) -> Any:
    fields = (
        Field(name="image", kind="image"),
        Field(name="text", kind="text", columns=("txt",)),
        Field(name="facts", kind="numbers", columns=("json.price",)),
    )
    schema = Schema(id="__key__", split_by="__key__", labels=Labels(column="json.kind"), fields=fields)
    return list_samples([folder / "a.tar"], folder, TarOptions(RowReader(schema, "leave_out"), size=8))


def rows_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What can be read of the listing's samples, by id."""
    manifest = load_manifest(folder)
    reader = reader_type(manifest)(manifest, "train", ("image", "text", "facts"), 8, any_of=True)
    sizes = reader.index.sizes
    batch = reader.read(Rows(np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes])))
    assert all(fault.isprintable() for fault in batch.faults)
    assert len(batch.faults) == int((batch.weights == 0).sum())
    arrays = [batch.labels, *batch.arrays.values()]
    wanted = [number for number in range(len(batch.ids)) if batch.weights[number]]
    return {batch.samples[number]: tuple(array[number].tolist() for array in arrays) for number in wanted}


@given(data=st.data())
def test_an_odd_manifest_of_tars_is_read_or_told(listing: Path, folder: Path, data: st.DataObject) -> None:
    whole = (listing / "manifest.json").read_bytes()
    path = folder / "manifest.json"
    path.write_bytes(data.draw(damaged(whole) | odd_json(json.loads(whole))))
    found = told_or_read(lambda: load_manifest(folder), path)
    for shard in found.shards if found is not None else ():
        for name in (shard.file, shard.index_file):
            assert ".." not in PurePosixPath(name).parts
        assert not shard.index_file.startswith("/")


@given(data=st.data())
def test_a_damaged_report_of_a_tar_is_made_again(listing: Path, data: st.DataObject) -> None:
    (path,) = (listing / "tars.index").glob("*.samples.json")
    whole, manifest = path.read_bytes(), load_manifest(listing)
    path.write_bytes(data.draw(damaged(whole)))
    try:
        found = told_or_read(lambda: list_tar(listing)[0], path)
    finally:
        path.write_bytes(whole)
    assert found is None or found.shards == manifest.shards


@given(data=st.data())
def test_a_tar_that_changes_under_its_listing_gives_right_samples_or_faults(listing: Path, data: st.DataObject) -> None:
    path = listing / "a.tar"
    whole, right = path.read_bytes(), rows_of(listing)
    at = data.draw(st.integers(0, len(whole) - 2048))
    piece = data.draw(damaged(whole[at : at + 2048]))[:2048].ljust(2048, b"\0")
    path.write_bytes(whole[:at] + piece + whole[at + 2048 :])
    try:
        with within_memory(MOST_BYTES):
            found = rows_of(listing)
    finally:
        path.write_bytes(whole)
    assert len([id for id, one in right.items() if found.get(id) != one]) <= 4


@given(data=st.data())
def test_a_damaged_tar_is_listed_as_far_as_it_can_be_or_told(folder: Path, listing: Path, data: st.DataObject) -> None:
    own = folder / "own"
    own.mkdir(exist_ok=True)
    (own / "a.tar").write_bytes(data.draw(damaged((listing / "a.tar").read_bytes())))
    found = told_or_read(lambda: list_tar(own), own)
    if found is not None:
        assert load_manifest(own) == found[0]
        assert found[1].samples <= 24
