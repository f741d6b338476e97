"""The manifest: read back as written, refused with the reason where it is not ours, named by what it holds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genre_dist.stream.index import RECORD, SplitIndex, index_path
from genre_dist.stream.manifest import FILE, SCHEMA, load_manifest, save_manifest
from genre_dist.stream.order import EpochOrder

Told = dict[str, Any]


def change(folder: Path, edit: Callable[[Told], Any]) -> None:
    told = json.loads((folder / FILE).read_text())
    edit(told)
    (folder / FILE).write_text(json.dumps(told))


def test_a_manifest_is_read_as_it_was_written(shards_copy: Path) -> None:
    manifest = load_manifest(shards_copy)
    before = (shards_copy / FILE).read_bytes()
    save_manifest(manifest)
    assert (shards_copy / FILE).read_bytes() == before
    assert load_manifest(str(shards_copy)) == manifest


def test_counts_add_up(sample_shards: Path) -> None:
    manifest = load_manifest(sample_shards)
    for split in ("train", "val", "test"):
        counts = [sum(shard.samples for shard in manifest.shards if shard.split == split)]
        counts += [manifest.samples(split, members) for members in [("poster",), ("overview",), ("overview", "poster")]]
        assert counts == [manifest.samples(split)] * 4
        assert counts[0] > 0


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_without_shards_the_message_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no shards in .*genre-dist sample.*genre-dist pack"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, "1"])
def test_another_schema_version_is_refused_with_both_versions(shards_copy: Path, schema: object) -> None:
    change(shards_copy, lambda told: told.update(schema=schema))
    with pytest.raises(ValueError, match=f"schema version {schema}, this version reads {SCHEMA}"):
        load_manifest(shards_copy)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"', "{}", '{"schema": 1}', "\udcff"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("field", ["genres", "image", "text", "require", "split_rule", "genre_counts", "shards"])
def test_a_missing_field_is_named(shards_copy: Path, field: str) -> None:
    change(shards_copy, lambda told: told.pop(field))
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{field}"):
        load_manifest(shards_copy)


def test_an_unknown_field_is_named(shards_copy: Path) -> None:
    change(shards_copy, lambda told: told["shards"][0].update(colour="blue"))
    with pytest.raises(ValueError, match="colour"):
        load_manifest(shards_copy)


def test_a_shard_of_an_unknown_split_is_refused(shards_copy: Path) -> None:
    change(shards_copy, lambda told: told["shards"][0].update(split="dev"))
    with pytest.raises(ValueError, match="unknown split `dev`"):
        load_manifest(shards_copy)


def test_asking_for_an_unknown_split_names_the_splits(sample_shards: Path) -> None:
    with pytest.raises(ValueError, match="no split `dev`; the splits are train, val, test"):
        load_manifest(sample_shards).samples("dev")


def test_asking_for_an_unknown_member_names_those_there_are(sample_shards: Path) -> None:
    with pytest.raises(ValueError, match="poster and overview, not trailer"):
        SplitIndex(load_manifest(sample_shards), "train", ("trailer",))


# ---- the fingerprint -------------------------------------------------------------------------------------------------


def test_the_fingerprint_does_not_depend_on_the_folder(sample_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_shards, tmp_path / "elsewhere")
    assert load_manifest(tmp_path / "elsewhere").fingerprint == load_manifest(sample_shards).fingerprint


@pytest.mark.parametrize(
    "edit",
    [
        lambda told: told["shards"][0].update(sha256="0" * 64),
        lambda told: told["shards"].pop(),
        lambda told: told["shards"].reverse(),
        lambda told: told["genres"].reverse(),
        lambda told: told["text"].update(vocabulary_sha256="0" * 64),
    ],
)
def test_the_fingerprint_depends_on_shards_genres_and_vocabulary(
    shards_copy: Path, edit: Callable[[Told], None]
) -> None:
    before = load_manifest(shards_copy).fingerprint
    change(shards_copy, edit)
    assert load_manifest(shards_copy).fingerprint != before


# ---- the index -------------------------------------------------------------------------------------------------------


def first_index(folder: Path) -> Path:
    return index_path(folder / load_manifest(folder).shards_of("train")[0].file)


def ids_of_a_step(folder: Path) -> list[int]:
    index = SplitIndex(load_manifest(folder), "train", ("poster", "overview"))
    return index.ids(EpochOrder(index.sizes, index.samples, seed=0, epoch=0).rows(0)).tolist()


def test_the_index_knows_every_film_of_a_split(sample_shards: Path) -> None:
    manifest = load_manifest(sample_shards)
    indexes = [np.load(index_path(sample_shards / shard.file)) for shard in manifest.shards_of("train")]
    assert sorted(ids_of_a_step(sample_shards)) == sorted(int(film) for index in indexes for film in index["id"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: np.save(path, np.load(path)[:-1]),
        lambda path: np.save(path, np.concatenate([np.load(path)] * 2)),
        lambda path: np.save(path, np.zeros(50)),
        lambda path: np.save(path, np.zeros((), RECORD)),
        lambda path: np.save(path, np.load(path)[["id", "offset"]]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(path.read_bytes()[:300]),
        lambda path: path.unlink(),
    ],
    ids=["short", "long", "numbers", "scalar", "fields", "empty", "garbage", "cut", "missing"],
)
def test_a_wrong_index_is_named_with_what_to_do(shards_copy: Path, damage: Callable[[Path], None]) -> None:
    damage(first_index(shards_copy))
    with pytest.raises(ValueError, match=rf"{first_index(shards_copy).name}.*genre-dist index"):
        ids_of_a_step(shards_copy)


def test_an_index_that_counts_other_members_than_the_manifest_is_refused(shards_copy: Path) -> None:
    index = np.load(first_index(shards_copy))
    index["has"][0] = 0
    np.save(first_index(shards_copy), index)
    with pytest.raises(ValueError, match=r"index\.npy.*where the manifest counts"):
        ids_of_a_step(shards_copy)
