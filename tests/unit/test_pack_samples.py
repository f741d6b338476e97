"""Packing a declared data set: members by the schema, splits by what it is split by, a manifest that says it all."""

import io
import json
import math
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from helpers import snapshot
from products import SCHEMA as PRODUCTS
from test_importing import make_table
from tiny_text import write_tokenizer

from genre_dist.catalogue.catalogue import samples_file
from genre_dist.catalogue.importing_samples import import_samples
from genre_dist.catalogue.sample_tables import make_table as make_drawn
from genre_dist.catalogue.samples import image_file, read_samples
from genre_dist.cli import main
from genre_dist.packing.moments import RunningMoments
from genre_dist.packing.pack import merge_parts, pack, pack_part
from genre_dist.packing.shard_report import SampleReport, read_report
from genre_dist.packing.tokenizer import read_tokenizer_file
from genre_dist.packing.vocabulary import tokenise
from genre_dist.sample_ids import id_of_key, member_key, number_of_id
from genre_dist.schema import Field, Schema
from genre_dist.splits import order_key, split_of
from genre_dist.storage import any_path, upload
from genre_dist.stream.index import RECORD, index_path, load_array
from genre_dist.stream.manifest import SampleManifest, load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader

SCHEMA = replace(PRODUCTS, split_by="maker")
OPTIONS: dict[str, Any] = {"size": 48, "shard_size": 20}
FRONT, TITLE, ABOUT, FACTS = 1, 2, 4, 8


def rows_of(drawn: Path) -> list[dict[str, Any]]:
    """Rows for the tests: ids with dots and slashes, and makers that several products share."""
    import csv

    with (drawn / "table.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["maker"] = f"maker {number // 3}"
        if number % 10 == 0:
            row["description"] = " "
    rows[1] |= {"price": "", "weight": ""}
    rows[3] |= {"title": "", "description": "", "price": "nan", "weight": ""}  # no image either: none of the fields
    rows[5]["sku"] = "a.b/ü"
    return rows


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    make_drawn("products", 120, 3, folder / "drawn")
    table = make_table(folder / "table.jsonl", rows_of(folder / "drawn"))
    import_samples(table, SCHEMA, {"front": [folder / "drawn" / "images"]}, folder / "catalogue")
    return folder / "catalogue"


@pytest.fixture(scope="module")
def shards(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "shards"
    pack(catalogue, out, workers=1, **OPTIONS)
    return out


@pytest.fixture(scope="module")
def manifest(shards: Path) -> SampleManifest:
    return load_manifest(shards)


def packed(manifest: SampleManifest) -> dict[str, dict[str, bytes]]:
    """Id -> its members by extension, as the tars have them."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in manifest.shards:
        with tarfile.open(Path(str(manifest.folder), shard.file)) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(id_of_key(key), {})[extension] = file.read()
    return samples


def split_in(manifest: SampleManifest, id: str) -> str:
    found = [
        shard.split
        for shard in manifest.shards
        if number_of_id(id) in load_array(index_path(Path(str(manifest.folder), shard.file)))["id"].tolist()
    ]
    assert len(found) == 1
    return found[0]


# ---- samples


def test_a_tokenizer_makes_the_tokens_of_every_text(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    file, out = write_tokenizer(tmp_path / "tokenizer"), tmp_path / "shards"
    made = pack(catalogue, out, tokenizer=str(file), **OPTIONS)
    tokenizer, samples = read_tokenizer_file(str(file)).pieces, packed(made)
    assert (out / "tokenizer.json").read_bytes() == file.read_bytes()
    assert (made.text["words"], made.text["padding"], made.text["closing"]) == (tokenizer.size, 0, 1)
    for row in read_samples(catalogue, made.declared):
        for field in ("title", "about"):
            if row["id"] in samples and f"{field}.tokens.npy" in samples[row["id"]]:
                tokens = np.load(io.BytesIO(samples[row["id"]][f"{field}.tokens.npy"]))
                np.testing.assert_array_equal(tokens, tokenizer.encode(row[field]))
    text = ShardReader(made, "train", ("title", "about"), 4, any_of=True).read(Rows(np.zeros(8, int), np.arange(8)))
    for part in ("title", "about"):  # a text that is cut keeps its end
        cut = text.arrays[f"{part}.lengths"] == 4
        assert set(text.arrays[f"{part}.tokens"][cut, -1].tolist()) == {3}
    assert main(["inspect", str(out), "--verify"]) == 0
    assert f"tokenizer tokenizer.json {made.text['vocabulary_sha256'][:16]}" in capsys.readouterr().out
    before = snapshot(out)
    pack(catalogue, out, tokenizer=str(file), **OPTIONS)
    assert snapshot(out) == before
    with pytest.raises(ValueError, match="packed with another --tokenizer"):
        pack(catalogue, out, **OPTIONS)


def test_a_sample_has_a_member_for_each_field_that_is_there(catalogue: Path, manifest: SampleManifest) -> None:
    samples = packed(manifest)
    words = Path(str(manifest.folder), "vocabulary.txt").read_text().splitlines()
    for row in read_samples(catalogue, manifest.declared):
        if row["id"] == "sku-4":
            continue
        members = samples[row["id"]]
        assert json.loads(members.pop("json")) == {"id": row["id"], "labels": row["labels"]}
        assert ("front.jpg" in members) == (row["front:status"] == "ok")
        if "front.jpg" in members:
            assert simplejpeg.decode_jpeg(members.pop("front.jpg")).shape == (48, 48, 3)
        for field in ("title", "about"):
            tokens = members.pop(f"{field}.tokens.npy", None)
            assert (tokens is None) == (not row[field].strip())
            if tokens is not None:
                ids = np.load(io.BytesIO(tokens))
                assert (ids.dtype, ids.ndim) == (np.int32, 1)
                told = [word if word in words else words[1] for word in tokenise(row[field])]
                assert [words[id] for id in ids] == told
        if "facts.numbers.npy" in members:
            facts = np.load(io.BytesIO(members.pop("facts.numbers.npy")))
            assert facts.dtype == np.float32
            np.testing.assert_array_equal(facts, np.array(row["facts"], np.float32))
        else:
            assert row["id"] == "sku-2"
        assert members == {}


def test_a_sample_without_any_field_is_left_out_with_a_reason(manifest: SampleManifest) -> None:
    assert "sku-4" not in packed(manifest)
    assert manifest.left_out == {"none of the fields": 1}
    assert sum(shard.samples for shard in manifest.shards) == 119


def test_members_are_in_the_order_of_the_schema_under_keys_that_lead_back_to_ids(manifest: SampleManifest) -> None:
    assert list(packed(manifest)["sku-5"]) == [
        *("json", "front.jpg", "title.tokens.npy", "about.tokens.npy", "facts.numbers.npy")
    ]
    assert list(packed(manifest)["a.b/ü"]) == ["json", "title.tokens.npy", "about.tokens.npy", "facts.numbers.npy"]
    assert member_key("a.b/ü") == "a%2Eb%2F%C3%BC"


def test_the_index_has_numbers_offsets_and_fields_of_all_samples(manifest: SampleManifest) -> None:
    samples = packed(manifest)
    number_of = {number_of_id(id): id for id in samples}
    bits = {"front.jpg": FRONT, "title.tokens.npy": TITLE, "about.tokens.npy": ABOUT, "facts.numbers.npy": FACTS}
    for shard in manifest.shards:
        path = Path(str(manifest.folder), shard.file)
        records = load_array(index_path(path))
        assert records.dtype == RECORD
        data = path.read_bytes()
        for record in records:
            id = number_of[int(record["id"])]
            name = data[record["offset"] : record["offset"] + 100].rstrip(b"\0").decode()
            assert name == f"{member_key(id)}.json"
            members = samples[id]
            assert record["has"] == sum(bit for extension, bit in bits.items() if extension in members)
            texts = [np.load(io.BytesIO(members[name])) for name in bits if name in members and "tokens" in name]
            assert record["tokens"] == max(map(len, texts))
        assert Counter(records["has"].tolist()) == {int(has): count for has, count in shard.has.items()}


# ---- splits and counts


def test_the_split_is_that_of_what_samples_are_split_by_and_the_order_that_of_ids(
    catalogue: Path, manifest: SampleManifest
) -> None:
    for row in list(read_samples(catalogue, manifest.declared))[:40]:
        if row["id"] != "sku-4":
            assert split_in(manifest, row["id"]) == split_of(number_of_id(row["split_by"]))
    for split in ("train", "val", "test"):
        numbers = [
            int(number)
            for shard in manifest.shards_of(split)
            for number in load_array(index_path(Path(str(manifest.folder), shard.file)))["id"]
        ]
        assert numbers == sorted(numbers, key=order_key)


def test_the_manifest_counts_labels_and_fields(catalogue: Path, manifest: SampleManifest) -> None:
    rows = [row for row in read_samples(catalogue, manifest.declared) if row["id"] != "sku-4"]
    for split in ("train", "val", "test"):
        there = [row for row in rows if split_of(number_of_id(row["split_by"])) == split]
        assert manifest.samples(split) == len(there)
        assert manifest.samples(split, ("front",)) == sum(row["front:status"] == "ok" for row in there)
        assert manifest.samples(split, ("about", "front")) == sum(
            row["front:status"] == "ok" and bool(row["about"].strip()) for row in there
        )
        labels = Counter(label for row in there for label in row["labels"])
        assert manifest.label_counts[split] == [labels[name] for name in manifest.declared.labels.classes]
    with pytest.raises(ValueError, match="a product has front and title and about and facts, not 'poster'"):
        manifest.samples("train", ("poster",))


def test_words_and_moments_are_those_of_the_train_split_alone(catalogue: Path, manifest: SampleManifest) -> None:
    train = [row for row in read_samples(catalogue, manifest.declared) if split_in_or_none(row) == "train"]
    facts = np.array([row["facts"] for row in train])
    moments = manifest.numbers["facts"]
    np.testing.assert_allclose(moments["mean"], np.nanmean(facts, axis=0))
    np.testing.assert_allclose(moments["std"], np.nanstd(facts, axis=0))
    words = Counter(tokenise(" ".join(f"{row['title']} {row['about']}" for row in train)))
    vocabulary = Path(str(manifest.folder), "vocabulary.txt").read_text().split()
    assert set(vocabulary[2:]) == {word for word, count in words.items() if count > 1}


def split_in_or_none(row: dict[str, Any]) -> str | None:
    """The split of a row that is packed."""
    return None if row["id"] == "sku-4" else split_of(number_of_id(row["split_by"]))


@pytest.mark.parametrize(
    ("rows", "mean", "std"),
    [
        ([[1.0, 5.0], [3.0, math.nan]], [2.0, 5.0], [1.0, 1.0]),
        ([[math.nan, math.nan]], [0.0, 0.0], [1.0, 1.0]),
        ([[1e9, 1.0], [1e9 + 2, 1.0]], [1e9 + 1, 1.0], [1.0, 1.0]),
    ],
)
def test_a_number_without_spread_is_standardised_by_one(
    rows: list[list[float]], mean: list[float], std: list[float]
) -> None:
    running = RunningMoments(2)
    for row in rows:
        running.add(row)
    assert running.result() == {"mean": mean, "std": std}


# ---- what pack does with folders, as for films


def test_the_same_catalogue_gives_the_same_bytes_on_any_number_of_processes_and_parts(
    catalogue: Path, shards: Path, tmp_path: Path
) -> None:
    pack(catalogue, tmp_path / "two", workers=2, **OPTIONS)
    for part in (1, 0):
        pack_part(catalogue, tmp_path / "parts", (part, 2), **OPTIONS)
    merge_parts(catalogue, tmp_path / "parts", **OPTIONS)
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "parts") == snapshot(shards)


def test_a_finished_folder_is_extended_and_what_is_there_keeps_its_bytes(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = catalogue.parent
    rows = [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]
    images, out = {"front": [folder / "drawn" / "images"]}, tmp_path / "shards"
    import_samples(make_table(tmp_path / "few.jsonl", rows[:60]), SCHEMA, images, tmp_path / "grows")
    pack(tmp_path / "grows", out, **OPTIONS)
    before = snapshot(out)
    numbers = load_manifest(out).numbers
    import_samples(folder / "table.jsonl", SCHEMA, images, tmp_path / "grows", overwrite=True)
    command = ["pack", "--catalogue", str(tmp_path / "grows"), "--out", str(out), "--size", "48", "--shard_size", "20"]
    assert main(command) == 0
    assert "60 products added" in capsys.readouterr().out
    after = snapshot(out)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    manifest = load_manifest(out)
    assert sum(shard.samples for shard in manifest.shards) == 119
    assert manifest.numbers == numbers
    assert main(command) == 0
    assert "nothing to add: the products of" in capsys.readouterr().out
    assert snapshot(out) == after


def test_a_killed_pack_goes_on(catalogue: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from genre_dist.packing import shard\n"
        "from genre_dist.packing.pack import pack\n"
        "real, done = shard.save_report, []\n"
        "def save(*arguments):\n"
        "    if done: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done.append(real(*arguments))\n"
        "shard.save_report = save\n"
        f"pack(Path(sys.argv[1]), Path(sys.argv[2]), **{OPTIONS!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(catalogue), str(out)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (first,) = out.glob("*.report.json")
    tar = first.with_name(first.name.replace(".report.json", ".tar"))
    made = tar.stat().st_mtime_ns
    pack(catalogue, out, **OPTIONS)
    assert tar.stat().st_mtime_ns == made
    assert snapshot(out) == snapshot(shards)


def test_a_remote_catalogue_gives_the_same_bytes(catalogue: Path, shards: Path, tmp_path: Path) -> None:
    remote = any_path("memory://samples/catalogue")
    for path in catalogue.rglob("*"):
        if path.is_file() and path.name != ".lock":
            upload(path, remote / str(path.relative_to(catalogue)))
    pack(remote, tmp_path / "shards", **OPTIONS)
    assert snapshot(tmp_path / "shards") == snapshot(shards)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"require": ("poster",)}, "--require knows front and title and about and facts, not poster"),
        ({"size": 0}, "--size goes from 1 to 4096"),
        ({"quality": 0}, "--quality goes from 1 to 100"),
        ({"fit": "stretch"}, "--fit is squash, crop, pad, not stretch"),
    ],
)
def test_impossible_options_are_refused(catalogue: Path, tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        pack(catalogue, tmp_path / "shards", **options)
    assert not (tmp_path / "shards").exists()


def test_the_text_of_films_is_no_option_here(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", "--catalogue", str(catalogue), "--out", str(tmp_path / "s"), "--text", "title"]) == 2
    assert "--text is for films" in capsys.readouterr().err


def test_what_lacks_a_required_field_is_left_out(catalogue: Path, tmp_path: Path) -> None:
    manifest = pack(catalogue, tmp_path / "shards", require=("front", "about"), **OPTIONS)
    assert manifest.left_out == {"no about": 12, "no front": 60}
    assert all(shard.has.keys() <= {"5", "7", "13", "15"} for shard in manifest.shards)


def test_shards_of_other_options_or_another_schema_are_not_mixed(
    catalogue: Path, sample_catalogue: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    shutil.copytree(shards, out)
    with pytest.raises(ValueError, match=r"packed with another --size \(48 there, 64 here\)"):
        pack(catalogue, out, **OPTIONS | {"size": 64})
    other = Schema(**vars(SCHEMA) | {"fields": SCHEMA.fields[1:]})
    import_samples(catalogue.parent / "table.jsonl", other, {}, tmp_path / "other")
    with pytest.raises(ValueError, match="packed with another --schema"):
        pack(tmp_path / "other", out, **OPTIONS)
    with pytest.raises(ValueError, match=r"manifest\.json.*--overwrite replaces what is there"):
        pack(sample_catalogue, out)
    assert snapshot(out) == snapshot(shards)
    pack(tmp_path / "other", out, overwrite=True, **OPTIONS)
    assert load_manifest(out).declared.by_name.keys() == {"title", "about", "facts"}


def test_unreadable_images_are_counted_and_left_out_where_required(catalogue: Path, tmp_path: Path) -> None:
    copy = tmp_path / "catalogue"
    shutil.copytree(catalogue, copy)
    damaged, gone = (image_file(copy, "front", number_of_id(id)) for id in ("sku-1", "sku-3"))
    damaged.write_bytes(b"\xff\xd8\xff no picture")
    gone.unlink()
    kept = pack(copy, tmp_path / "kept", **OPTIONS)
    assert sum(shard.samples for shard in kept.shards) == 119
    assert "front.jpg" not in packed(kept)["sku-1"]
    strict = pack(copy, tmp_path / "strict", require=("front",), **OPTIONS)
    assert {reason: strict.left_out[reason] for reason in strict.left_out if "no " not in reason} == {
        "missing front file": 1,
        "unreadable front": 1,
    }
    reports = [read_report(tmp_path / "strict" / shard.file, SampleReport) for shard in strict.shards]
    problems = {problem["id"]: problem["problem"] for report in reports for problem in report.problems}
    assert sorted(problems) == ["sku-1", "sku-3"]
    assert problems["sku-3"].endswith("is missing")
    again = pack(copy, tmp_path / "strict", require=("front",), **OPTIONS)  # they are known, not new
    assert again.shards == strict.shards


def test_an_id_too_long_for_a_tar_is_named_before_anything_is_packed(tmp_path: Path) -> None:
    rows = [{"sku": "x" * length, "category": "ab"[length % 2], "maker": "m", "title": "t"} for length in (3, 84)]
    schema = Schema(**vars(SCHEMA) | {"fields": (Field(name="a" * 20, kind="text", columns=("title",)),)})
    import_samples(make_table(tmp_path / "t.jsonl", rows), schema, {}, tmp_path / "catalogue")
    with pytest.raises(ValueError, match=r"catalogue: the id 'xxx.* takes 84 bytes as a key in a tar, where 68 fit"):
        pack(tmp_path / "catalogue", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_a_catalogue_without_its_schema_is_named(catalogue: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    shutil.copy(samples_file(catalogue), tmp_path / "c")
    with pytest.raises(ValueError, match=r"no catalogue of a declared data set in .*schema\.json"):
        pack(tmp_path / "c", tmp_path / "shards")


# ---- the manifest


def test_the_manifest_is_of_version_2_and_comes_back_as_it_was(shards: Path, manifest: SampleManifest) -> None:
    written = json.loads((shards / "manifest.json").read_text())
    assert (written["format"], written["schema"]) == ("genre_dist shards", 2)
    assert written["declared"] == json.loads(json.dumps(manifest.declared.to_dict()))
    assert json.loads(json.dumps(manifest.to_dict())) == written
    assert len(manifest.fingerprint) == 16


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("schema", 1, "Field required"),
        ("require", ["poster"], "not 'poster'"),
        ("label_counts", {"train": [1]}, "label_counts has not one number for each class"),
        ("numbers", {}, "numbers has not one mean for each number of a field"),
        ("numbers", {"facts": {"mean": [0.0, 0.0], "std": [1.0, 0.0]}}, "a std that is not above 0"),
        ("numbers", {"facts": {"mean": [math.nan, 0.0], "std": [1.0, 1.0]}}, "no finite mean"),
        ("colour", "red", "colour: "),
    ],
)
def test_a_manifest_that_cannot_be_is_named(shards: Path, tmp_path: Path, key: str, value: Any, problem: str) -> None:
    written = json.loads((shards / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(written | {key: value}))
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{problem}"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("has", "problem"),
    [
        ({"1": 1}, "as its counts by fields sum to others"),
        ({"16": 20}, "fields that are not declared"),
        ({"a": 20}, "has.a"),
    ],
)
def test_counts_of_fields_that_cannot_be_are_named(
    shards: Path, tmp_path: Path, has: dict[str, int], problem: str
) -> None:
    written = json.loads((shards / "manifest.json").read_text())
    written["shards"][0]["has"] = has
    (tmp_path / "manifest.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{problem}"):
        load_manifest(tmp_path)
