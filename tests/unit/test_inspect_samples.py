"""inspect on shards of a declared data set: what it prints, and that --verify finds each kind of damage."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_importing import make_table

from genre_dist.catalogue.importing_samples import import_samples
from genre_dist.catalogue.sample_tables import make_table as make_drawn
from genre_dist.cli import main
from genre_dist.packing.pack import pack
from genre_dist.packing.shard import tar_of, tokens_member
from genre_dist.packing.verification import verify
from genre_dist.sample_ids import id_of_key, member_key, number_of_id
from genre_dist.schema import Field, Labels, Schema
from genre_dist.storage import sha256_of
from genre_dist.stream import tar
from genre_dist.stream.index import array_bytes, index_path, load_array, save_array
from genre_dist.stream.manifest import FilmManifest, SampleManifest, load_manifest, save_manifest

SCHEMA = Schema(
    id="sku",
    split_by="sku",
    labels=Labels(column="category", choose="one"),
    fields=(
        Field(name="image", kind="image"),
        Field(name="text", kind="text", columns=("title", "description")),
        Field(name="facts", kind="numbers", columns=("price", "weight")),
    ),
    label="category",
)
FILE = "train-000000.tar"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    make_drawn("products", 60, 0, folder / "drawn")
    import_samples(folder / "drawn" / "table.csv", SCHEMA, {"image": [folder / "drawn" / "images"]}, folder / "c")
    pack(folder / "c", folder / "shards", size=32, shard_size=1000)
    return folder / "shards"


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def test_whole_shards_have_no_fault(shards: Path) -> None:
    assert verify(load_manifest(shards)) == []


def test_the_summary_tells_fields_labels_and_numbers(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shards), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "fields: image (image), text (text), facts (numbers); split by sku" in printed
    assert "facts in the train split: price " in printed
    assert "category, choose one" in printed
    assert "verified: 3 shards are whole" in printed
    train = load_manifest(shards).samples("train")
    assert re.search(rf"│ samples +│ {train} ", printed)


def test_shards_of_films_stay_those_of_films(sample_shards: Path) -> None:
    assert isinstance(load_manifest(sample_shards), FilmManifest)


def test_no_shards_say_how_to_make_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "(manifest.json is missing). Make some:" in capsys.readouterr().err


# ---- damage


def faults(folder: Path) -> str:
    return "\n".join(verify(load_manifest(folder)))


def resealed(folder: Path, data: bytes) -> None:
    """Write a tar whose checksum and size the manifest and the report agree with."""
    path = folder / FILE
    path.write_bytes(data)
    manifest = load_manifest(folder)
    shards = [
        replace(shard, bytes=len(data), sha256=sha256_of(path)) if shard.file == FILE else shard
        for shard in manifest.shards
    ]
    save_manifest(SampleManifest(**vars(manifest) | {"shards": tuple(shards)}))
    path.with_suffix(".report.json").unlink(missing_ok=True)


def first_sample(folder: Path) -> dict[str, bytes]:
    """The members of the first sample."""
    record = load_array(index_path(folder / FILE))[0]
    data = (folder / FILE).read_bytes()[: record["size"]]
    found = {
        member.name.partition("."): data[member.start : member.start + member.size] for member in tar.members(data)
    }
    return {".".join(name[2:]): content for name, content in found.items()}


def key_of_first(folder: Path) -> str:
    return (folder / FILE).read_bytes()[:100].partition(b".")[0].decode()


def with_first(folder: Path, members: dict[str, bytes], key: str | None = None) -> None:
    """Put another first sample in place of the one there; it may have another size."""
    records = np.array(load_array(index_path(folder / FILE)))
    rest = (folder / FILE).read_bytes()[int(records[0]["size"]) :]
    new = tar_of(key or key_of_first(folder), members)
    records["offset"][1:] += len(new) - int(records[0]["size"])
    records["size"][0] = len(new)
    with index_path(folder / FILE).open("wb") as file:
        save_array(records, file)
    resealed(folder, new + rest)


def changed(members: dict[str, bytes], **about: Any) -> dict[str, bytes]:
    return members | {"json": json.dumps(json.loads(members["json"]) | about).encode()}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda members: changed(members, id="other"), "its .json describes sample other"),
        (lambda members: changed(members, labels=["boats"]), "the category boats is not in the manifest"),
        (lambda members: changed(members, labels=[]), "0 labels, where it has exactly one"),
        (lambda members: changed(members, labels="mugs"), "the member .json has no list of labels"),
        (lambda members: members | {"json": b"[]"}, "the member .json is no object"),
        (lambda members: {name: data for name, data in members.items() if name != "json"}, "no member .json"),
        (
            lambda members: {name: data for name, data in members.items() if name != "facts.numbers.npy"},
            "no member .facts.numbers.npy",
        ),
        (lambda members: members | {"cls": b"1"}, "the index knows nothing of its member .cls"),
        (
            lambda members: members | {"text.tokens.npy": tokens_member(np.array([10**6], np.int32))},
            "the token 1000000 is outside the vocabulary",
        ),
        (
            lambda members: members | {"text.tokens.npy": tokens_member(np.array([1], np.int32))},
            "1 tokens where the index has",
        ),
        (
            lambda members: members | {"facts.numbers.npy": array_bytes(np.zeros(3, np.float32))},
            "not 2 finite numbers",
        ),
        (
            lambda members: members | {"facts.numbers.npy": array_bytes(np.array([1, np.inf], np.float32))},
            "not 2 finite numbers",
        ),
    ],
)
def test_a_changed_sample_is_found(
    copy: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], problem: str
) -> None:
    with_first(copy, change(first_sample(copy)))
    found = faults(copy)
    assert problem in found
    assert f"{FILE}: sample {id_of_key(key_of_first(copy))} at byte 0: " in found


def test_a_sample_under_another_key_or_in_another_split_is_found(copy: Path) -> None:
    members = first_sample(copy)
    with_first(copy, members, member_key("another"))
    assert "the sample 'another' lies where another one should" in faults(copy)
    with_first(copy, members, "a~b")
    assert "is no key of a sample that was packed from a declared data set" in faults(copy)
    records = np.array(load_array(index_path(copy / FILE)))
    of_test = next(f"sku-{n}" for n in range(10_000) if _in_test(f"sku-{n}"))
    records["id"][0] = number_of_id(of_test)
    with index_path(copy / FILE).open("wb") as file:
        save_array(records, file)
    with_first(copy, changed(members, id=of_test), member_key(of_test))
    assert f"sample {of_test} at byte 0: the sample belongs to test, not train" in faults(copy)


def _in_test(id: str) -> bool:
    from genre_dist.splits import split_of

    return split_of(number_of_id(id)) == "test"


def test_a_flipped_bit_a_cut_and_a_missing_file_are_found(copy: Path) -> None:
    path = copy / FILE
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    assert "the checksum differs from the manifest's" in faults(copy)
    path.write_bytes(data[:-600])
    assert "bytes where the manifest has" in faults(copy)
    path.unlink()
    assert FILE in faults(copy)


def test_counts_that_disagree_with_the_shards_are_found(copy: Path) -> None:
    manifest = load_manifest(copy)
    counts = {split: list(reversed(numbers)) for split, numbers in manifest.label_counts.items()}
    save_manifest(SampleManifest(**vars(manifest) | {"label_counts": counts}))
    assert "label_counts of train disagree with the shards" in faults(copy)
    shards = [replace(shard, has={"6": shard.samples}) for shard in manifest.shards]
    save_manifest(SampleManifest(**vars(manifest) | {"shards": tuple(shards)}))
    assert "samples with image where the manifest has" in faults(copy)


@pytest.mark.parametrize("change", [{"left_out": {"unreadable image": 3}}, {"recipe": {"quality": 3}}])
def test_a_report_of_other_samples_or_options_is_found(copy: Path, change: dict[str, Any]) -> None:
    path = copy / FILE.replace(".tar", ".report.json")
    told = json.loads(path.read_text())
    told.update({name: told[name] | values for name, values in change.items()})
    path.write_text(json.dumps(told))
    assert re.search("where the reports of the shards have 3|describes other counts", faults(copy))


def test_a_sample_in_two_shards_is_found(copy: Path) -> None:
    manifest = load_manifest(copy)
    twice = replace(manifest.shards[0], file="train-000009.tar")
    for suffix in (".tar", ".index.npy"):
        shutil.copy(copy / FILE.replace(".tar", suffix), copy / f"train-000009{suffix}")
    save_manifest(SampleManifest(**vars(manifest) | {"shards": (*manifest.shards, twice)}))
    assert "the sample is in the shards twice" in faults(copy)


def test_verify_ends_with_1_and_the_number_of_faults(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "vocabulary.txt").write_text("other\n")
    assert main(["inspect", str(copy), "--verify"]) == 1
    assert "faults\n" in capsys.readouterr().out


def test_a_data_set_of_one_text_alone_is_packed_and_whole(tmp_path: Path) -> None:
    rows = [{"sku": n, "category": "ab"[n % 2], "title": f"word {n % 5}"} for n in range(40)]
    schema = replace(SCHEMA, fields=(Field(name="text", kind="text", columns=("title",)),))
    import_samples(make_table(tmp_path / "t.jsonl", rows), schema, {}, tmp_path / "c")
    pack(tmp_path / "c", tmp_path / "shards", workers=1)
    assert faults(tmp_path / "shards") == ""
    assert main(["inspect", str(tmp_path / "shards")]) == 0
