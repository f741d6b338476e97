"""The manifest: read back as written, refused with the reason where it is not ours, named by what it holds."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import within_memory

from genre_dist.stream.index import RECORD, SplitIndex, index_path
from genre_dist.stream.manifest import FILE, NEWEST, load_manifest, save_manifest
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


@pytest.mark.parametrize("schema", [NEWEST + 1, 0, "1"])
def test_another_schema_version_is_refused_with_both_versions(shards_copy: Path, schema: object) -> None:
    change(shards_copy, lambda told: told.update(schema=schema))
    with pytest.raises(ValueError, match=f"schema version {schema!r}, this version reads 1 to {NEWEST}"):
        load_manifest(shards_copy)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"', "{}", '{"schema": 1}', "\udcff"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"manifest\.json: .*not a manifest"):
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


BEYOND = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "https://example.com/x",
    "",
    ".",
    "a//b",
    "a\x1b[31m",
    "a\\b",
    "a\nb",
    None,
    7,
]


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("key", ["vocabulary", "vectors", "file"])
def test_paths_in_a_manifest_name_files_in_its_folder_and_nothing_else(
    shards_copy: Path, key: str, name: object
) -> None:
    if (key, name) == ("vectors", None):  # there are none
        return
    change(shards_copy, lambda told: (told["shards"][0] if key == "file" else told["text"]).update({key: name}))
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{key}: .*pack the shards again"):
        load_manifest(shards_copy)


def test_a_file_below_the_folder_and_a_link_there_are_the_users_own(shards_copy: Path, tmp_path: Path) -> None:
    first = load_manifest(shards_copy).shards[0].file
    (shards_copy / "below").mkdir()
    (shards_copy / first).rename(tmp_path / "elsewhere.tar")
    (shards_copy / "below" / first).symlink_to(tmp_path / "elsewhere.tar")
    index_path(shards_copy / first).rename(index_path(shards_copy / "below" / first))
    change(shards_copy, lambda told: told["shards"][0].update(file=f"below/{first}"))
    assert len(ids_of_a_step(shards_copy)) == load_manifest(shards_copy).samples("train")


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "/some/dir", "../" * 21 + "x", 0, None])
def test_a_checksum_has_64_hex_digits(shards_copy: Path, sha256: object) -> None:
    change(shards_copy, lambda told: told["shards"][0].update(sha256=sha256))
    with pytest.raises(ValueError, match=r"manifest\.json: shards\.0\.sha256: "):
        load_manifest(shards_copy)
    change(shards_copy, lambda told: told["shards"][0].update(sha256="0" * 64))
    change(shards_copy, lambda told: told["text"].update(vocabulary_sha256=sha256))
    with pytest.raises(ValueError, match=r"manifest\.json: text\.vocabulary_sha256: "):
        load_manifest(shards_copy)


@pytest.mark.parametrize("key", ["samples", "poster", "overview", "both", "bytes"])
@pytest.mark.parametrize("number", [-3, 49.0, "50", True, None, 2**63 + 5])
def test_counts_are_whole_and_not_negative(shards_copy: Path, key: str, number: object) -> None:
    change(shards_copy, lambda told: told["shards"][0].update({key: number}))
    with pytest.raises(ValueError, match=rf"manifest\.json: shards\.0\.{key}: "):
        load_manifest(shards_copy)


@pytest.mark.parametrize(
    "counts",
    [
        {"samples": 10, "poster": 11, "overview": 5, "both": 5},
        {"samples": 10, "poster": 5, "overview": 11, "both": 5},
        {"samples": 10, "poster": 5, "overview": 5, "both": 6},
        {"samples": 10, "poster": 8, "overview": 8, "both": 5},
        {"samples": 0, "poster": 1, "overview": 1, "both": 1},
    ],
)
def test_counts_that_do_not_add_up_are_refused(shards_copy: Path, counts: dict[str, int]) -> None:
    change(shards_copy, lambda told: told["shards"][0].update(counts))
    with pytest.raises(ValueError, match=r"manifest\.json: .*\.tar cannot have .* samples"):
        load_manifest(shards_copy)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda told: told["shards"].append(told["shards"][0]), "is there twice"),
        (lambda told: told["shards"][0].update(file="shard"), "is not named as a tar"),
        (lambda told: told["genre_counts"].pop("val"), "not one number for each genre"),
        (lambda told: told["genre_counts"]["val"].pop(), "not one number for each genre"),
        (lambda told: told["genre_counts"]["val"].__setitem__(3, -1), "greater than or equal to 0"),
        (lambda told: told["left_out"].update(poster=-1), "greater than or equal to 0"),
        (lambda told: told["genres"].append(told["genres"][0]), "two genres have the id 28"),
        (lambda told: told["genres"].append({"id": 1, "name": "Action"}), "two genres have the name 'Action'"),
        (lambda told: told["genres"].clear(), "no genres"),
        (lambda told: told["genres"][0].update(name="\x1b[31mred"), "without a proper name"),
        (lambda told: told["genres"][0].update(id="28"), "valid integer"),
        (lambda told: told["require"].append("trailer"), "not 'trailer'"),
        (lambda told: told["image"].update(size=0), "image.size"),
        (lambda told: told["image"].update(size=10**9), "image.size"),
        (lambda told: told["text"].update(words=-1), "text.words"),
        (lambda told: told["text"].update(dim=-1), "text.dim"),
        (lambda told: told.update(encoding={"size": -1, "key": "a", "source": "b"}), "encoding.size"),
        (lambda told: told.update(encoding={"size": 8, "key": "a"}), "encoding.source"),
        (lambda told: told.update(folder="/"), "folder"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(shards_copy: Path, edit: Callable[[Told], Any], reason: str) -> None:
    change(shards_copy, edit)
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{reason}") as error:
        load_manifest(shards_copy)
    assert str(error.value).isprintable()


def test_asking_for_an_unknown_split_names_the_splits(sample_shards: Path) -> None:
    with pytest.raises(ValueError, match="no split `dev`; the splits are train, val, test"):
        load_manifest(sample_shards).samples("dev")


def test_asking_for_an_unknown_member_names_those_there_are(sample_shards: Path) -> None:
    with pytest.raises(ValueError, match="poster and overview, not 'trailer'"):
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
        lambda path: path.write_bytes(npz(np.load(path))),
        lambda path: path.write_bytes(pickle.dumps([1, 2, 3])),
        lambda path: np.save(path, np.array([{}, {}]), allow_pickle=True),
        lambda path: path.write_bytes(head(f"({10**12},)")),
        lambda path: path.write_bytes(head(f"({2**64}, {2**64})")),
        lambda path: path.write_bytes(head("(-5,)")),
        lambda path: path.write_bytes(head("(" * 9000)),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
    ],
    ids=[
        *("short", "long", "numbers", "scalar", "fields", "empty", "garbage", "cut", "missing"),
        *("npz", "pickle", "objects", "huge", "larger than any", "negative", "nested", "more"),
    ],
)
def test_a_wrong_index_is_named_with_what_to_do(shards_copy: Path, damage: Callable[[Path], None]) -> None:
    damage(first_index(shards_copy))
    with (
        within_memory(100 << 20),
        pytest.raises(ValueError, match=rf"{first_index(shards_copy).name}.*genre-dist index"),
    ):
        ids_of_a_step(shards_copy)


def npz(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def head(shape: str) -> bytes:
    """What np.save writes before the records of an index, of another shape."""
    text = f"{{'descr': {RECORD.descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("row", [1, 20, -2])
@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("size", lambda value: value ^ 1 << 31),
        ("size", lambda value: 2**32 - 1),
        ("size", lambda value: value + 512),
        ("offset", lambda value: -value - 512),
        ("offset", lambda value: value ^ 1 << 62),
        ("offset", lambda value: 2**63 - 1),
        ("offset", lambda value: value - 512),
    ],
)
def test_samples_lie_inside_their_shard_and_apart_before_memory_is_taken(
    shards_copy: Path, column: str, change: Callable[[int], int], row: int
) -> None:
    index = np.load(first_index(shards_copy))
    index[column][row] = change(int(index[column][row]))
    np.save(first_index(shards_copy), index)
    with (
        within_memory(100 << 20),
        pytest.raises(ValueError, match=r"sample \d+ would lie outside the shard's .* bytes"),
    ):
        ids_of_a_step(shards_copy)


def test_an_index_may_list_samples_again_in_any_order(shards_copy: Path) -> None:
    index = np.load(first_index(shards_copy))
    index[1], index[2], index[3] = index[5].copy(), index[2].copy(), index[0].copy()
    np.save(first_index(shards_copy), index[::-1])
    assert len(ids_of_a_step(shards_copy)) == load_manifest(shards_copy).samples("train")


def test_an_index_that_counts_other_members_than_the_manifest_is_refused(shards_copy: Path) -> None:
    index = np.load(first_index(shards_copy))
    index["has"][0] = 0
    np.save(first_index(shards_copy), index)
    with pytest.raises(ValueError, match=r"index\.npy.*where the manifest counts"):
        ids_of_a_step(shards_copy)
