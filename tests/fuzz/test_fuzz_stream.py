"""Shards, listings, tars, caches and encodings, damaged or by another hand: the right result, a fault, or one line."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pytest
from fuzzing import damaged, odd_json, told_or_read, within_memory
from hypothesis import given
from hypothesis import strategies as st

from genre_dist.catalogue.sample_films import make_sample
from genre_dist.packing.pack import pack
from genre_dist.stream import ShardReader, TarReader, evaluation_stream, index_tars, load_manifest, load_tars, tar
from genre_dist.stream import cache as cache_module
from genre_dist.stream.batch import Batch
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.index import POSTER, RECORD, index_path, save_array
from genre_dist.stream.manifest import FILE, Manifest, save_manifest
from genre_dist.stream.order import Rows
from genre_dist.training.encode_once import encoded_sample

BOTH = ("poster", "overview")
MEMORY = 200 << 20


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 films to train on, 8 to a shard."""
    folder = tmp_path_factory.mktemp("packed")
    make_sample(60, seed=1, out=folder / "catalogue", size=(40, 60))
    pack(folder / "catalogue", folder / "shards", size=24, shard_size=8, workers=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def place(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shards, in which one file after the other is damaged and made whole again."""
    return Path(shutil.copytree(shards, tmp_path_factory.mktemp("damaged") / "shards"))


# ---- manifest and listing --------------------------------------------------------------------------------------------


def all_names(manifest: Manifest) -> list[str]:
    names = [manifest.text["vocabulary"], *(shard.file for shard in manifest.shards)]
    return names + [shard.index_file for shard in manifest.shards]


@given(data=st.data())
def test_a_manifest_is_told_or_is_what_its_file_says_and_names_files_of_its_folder(
    data: st.DataObject, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = (shards / FILE).read_bytes()
    written = data.draw(damaged(whole) | odd_json(json.loads(whole)))
    path = tmp_path_factory.getbasetemp() / FILE
    path.write_bytes(written)
    found = told_or_read(lambda: load_manifest(path.parent), path)
    if found is not None:
        told = json.loads(written)
        known = {key: value for key, value in told.items() if (key, value) != ("encoding", None)}
        assert json.loads(json.dumps(found.to_dict())) == known
        assert all(".." not in PurePosixPath(name).parts and not name.startswith("/") for name in all_names(found))
        assert len(found.fingerprint) > 0
        assert sum(found.samples(split, BOTH) for split in ("train", "val", "test")) >= 0


class Listed(NamedTuple):
    folder: Path
    samples: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    """A tar with all that GNU, PAX and USTAR have for us, indexed."""
    folder = tmp_path_factory.mktemp("listed")
    with open(folder / "a.tar", "wb") as file:
        for form, keys in ((tarfile.PAX_FORMAT, "ab"), (tarfile.GNU_FORMAT, "cd"), (tarfile.USTAR_FORMAT, "ef")):
            with tarfile.open(fileobj=file, mode="w", format=form) as archive:
                for key in keys:
                    name = "folder/" * (30 if form != tarfile.USTAR_FORMAT else 5) + key
                    add(archive, f"{name}.jpg", key.encode() * 700)
                    add(archive, f"{name}.txt", key.encode())
                link = tarfile.TarInfo(f"{name}.link")
                link.type, link.linkname = tarfile.LNKTYPE, f"{name}.jpg"
                archive.addfile(link)
    index_tars([folder / "a.tar"], folder)
    return Listed(folder, read_all(folder))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The samples of a listing that can be read, by key."""
    batches = evaluation_stream(TarReader(load_tars(folder), ()), batch=4, workers=0)
    return {sample["__key__"]: sample for batch in batches for sample in batch.samples if sample is not None}


def test_the_listed_tar_is_read_whole(listed: Listed) -> None:
    assert [len(sample) for sample in listed.samples.values()] == [3, 4] * 3
    assert all(sample.get("link", sample["jpg"]) == sample["jpg"] for sample in listed.samples.values())


@given(data=st.data())
def test_a_listing_is_told_or_is_what_its_file_says(
    data: st.DataObject, listed: Listed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = (listed.folder / "tars.json").read_bytes()
    path = tmp_path_factory.getbasetemp() / "tars.json"
    written = data.draw(damaged(whole) | odd_json(json.loads(whole)))
    path.write_bytes(written)
    found = told_or_read(lambda: load_tars(path.parent), path)
    if found is not None:
        for tar_, told in zip(found.tars, json.loads(written)["tars"], strict=True):
            assert (tar_.file, tar_.samples, tar_.index_file) == (told["file"], told["samples"], told["index_file"])
            assert ".." not in PurePosixPath(tar_.file).parts
            assert ".." not in PurePosixPath(tar_.index_file).parts
            assert not tar_.index_file.startswith("/")


# ---- tars of other people --------------------------------------------------------------------------------------------


@given(data=st.data())
def test_a_damaged_tar_is_told_or_gives_samples_in_it(
    data: st.DataObject, listed: Listed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "tars"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    written = data.draw(damaged((listed.folder / "a.tar").read_bytes()))
    (folder / "a.tar").write_bytes(written)
    found = told_or_read(lambda: index_tars([folder / "a.tar"], folder), folder / "a.tar")
    if found is not None:
        assert load_tars(folder) == found
        with within_memory(MEMORY):
            samples = read_all(folder)
        assert len(samples) <= found.tars[0].samples
        for sample in samples.values():
            assert all(content in written for name, content in sample.items() if name != "__key__")


@given(data=st.data())
def test_a_tar_that_changes_under_its_index_gives_right_samples_or_faults(data: st.DataObject, listed: Listed) -> None:
    path = listed.folder / "a.tar"
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 2048))
    piece = data.draw(damaged(whole[at : at + 2048]))[:2048].ljust(2048, b"\0")
    try:
        path.write_bytes(whole[:at] + piece + whole[at + 2048 :])
        with within_memory(MEMORY):
            found = read_all(listed.folder)
    finally:
        path.write_bytes(whole)
    near = {key for key, sample in listed.samples.items() if found.get(key) != sample}
    assert len(near) <= 5  # those that the piece meets, and links to them


BLOCKS = st.lists(st.sampled_from([tar.header("a.b", 3), bytes(512), b"x" * 512])).map(b"".join)


@given(st.binary(max_size=3000) | BLOCKS)
def test_any_bytes_are_members_inside_them_or_an_error_in_one_line(data: bytes) -> None:
    found, told = [], ""
    try:
        found = list(tar.entries(data))
    except ValueError as error:
        told = str(error)
    assert told.isprintable()
    assert all(0 <= entry.header <= entry.start <= entry.start + entry.size <= len(data) for entry in found)


# ---- our shards ------------------------------------------------------------------------------------------------------


def everything(folder: Path) -> Batch:
    reader = ShardReader(load_manifest(folder), "train", BOTH, 64)
    sizes = reader.index.sizes
    shard = np.repeat(np.arange(len(sizes)), sizes)
    return reader.read(Rows(shard, np.concatenate([np.arange(size) for size in sizes])))


def film_of(batch: Batch, number: int) -> tuple[Any, ...]:
    assert batch.images is not None
    assert batch.tokens is not None
    assert batch.lengths is not None
    length = batch.lengths[number]
    return batch.labels[number].tolist(), batch.images[number].tolist(), batch.tokens[number, :length].tolist()


@given(data=st.data())
def test_a_damaged_index_is_told_or_its_samples_are_right_or_faults(
    data: st.DataObject, shards: Path, place: Path
) -> None:
    file = load_manifest(shards).shards_of("train")[0].file
    path, whole = index_path(place / file), index_path(shards / file).read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)))
        found = told_or_read(lambda: everything(place), path)
    finally:
        path.write_bytes(whole)
    if found is not None:
        right = everything(shards)
        films = {int(film): film_of(right, number) for number, film in enumerate(right.ids)}
        for number, film in enumerate(found.ids.tolist()):
            assert found.weights[number] == 0 or film_of(found, number) == films[film]


@given(data=st.data())
def test_damage_in_one_sample_leaves_the_others_as_they_are(data: st.DataObject, shards: Path, place: Path) -> None:
    file = load_manifest(shards).shards_of("train")[0].file
    whole = (shards / file).read_bytes()
    records = np.load(index_path(shards / file))
    victim = data.draw(st.integers(0, len(records) - 1))
    start, size = int(records["offset"][victim]), int(records["size"][victim])
    piece = data.draw(damaged(whole[start : start + size]))[:size].ljust(size, b"\0")
    try:
        (place / file).write_bytes(whole[:start] + piece + whole[start + size :])
        with within_memory(MEMORY):
            found = everything(place)
    finally:
        (place / file).write_bytes(whole)
    right = everything(shards)
    assert found.ids.tolist() == right.ids.tolist()
    assert len(found.faults) == int((found.weights == 0).sum()) <= 1
    assert all(line.isprintable() and f"film {records['id'][victim]} " in line for line in found.faults)
    others = np.arange(len(found.ids)) != victim
    for name in ("labels", "images", "tokens", "lengths"):
        np.testing.assert_array_equal(getattr(found, name)[others], getattr(right, name)[others])


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[int]:
    """Blocks of 4 KiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "BLOCK_BYTES", 4096)
        yield 4096


@given(data=st.data())
def test_a_damaged_cache_gives_the_right_bytes(
    data: st.DataObject, small_blocks: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    whole = b"whole" * (small_blocks // 5) + b"and the end"
    cache = BlockCache(folder, 5 * small_blocks)

    def read() -> bytes:
        return cache.read("key", 5, len(whole) - 1, len(whole), lambda start, end: whole[start:end])

    assert read() == whole[5:-1]
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    written = path.read_bytes()
    path.write_bytes(data.draw(damaged(written[-300:] or b"12")))
    assert read() == whole[5:-1]
    path.write_bytes(written[:-1] + data.draw(st.binary(max_size=4)))
    assert read() == whole[5:-1]
    assert sum(path.stat().st_size for path in folder.glob("blocks/*/*")) <= 5 * small_blocks


# ---- encodings -------------------------------------------------------------------------------------------------------

WIDTH = 6


@pytest.fixture(scope="module")
def encoded(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encodings of the first shard's films: each film's id times 1 to 6; the second film could not be read."""
    folder, source = tmp_path_factory.mktemp("encoded"), load_manifest(shards)
    shard = source.shards_of("train")[0]
    pieces: list[bytes] = []
    records = []
    for number, film in enumerate(np.load(index_path(shards / shard.file))["id"].tolist()):
        fault = "no JPEG" if number == 1 else None
        pieces.append(
            encoded_sample(film, [28, 18], np.float32(film) * np.arange(1, WIDTH + 1, dtype=np.float32), fault)
        )
        records.append((film, sum(map(len, pieces[:-1])), len(pieces[-1]), 5, POSTER))
    written = b"".join([*pieces, tar.END])
    (folder / shard.file).write_bytes(written)
    with open(index_path(folder / shard.file), "wb") as file:
        save_array(np.array(records, RECORD), file)
    counts = {"poster": len(records), "overview": 0, "both": 0, "bytes": len(written)}
    made = replace(shard, sha256=hashlib.sha256(written).hexdigest(), **counts)
    told = {"size": WIDTH, "key": "0" * 16, "source": source.fingerprint}
    save_manifest(replace(source, folder=folder, shards=(made,), encoding=told))
    return folder


def encodings(folder: Path) -> Batch:
    reader = ShardReader(load_manifest(folder), "train", ("poster",), 64)
    size = reader.index.sizes[0]
    return reader.read(Rows(np.zeros(size, np.int64), np.arange(size)))


@given(data=st.data())
def test_damaged_encodings_are_told_or_are_finite_numbers_in_their_places(data: st.DataObject, encoded: Path) -> None:
    path = next(encoded.glob("*.tar"))
    whole, right = path.read_bytes(), encodings(encoded)
    try:
        path.write_bytes(data.draw(damaged(whole)))
        found = told_or_read(lambda: encodings(encoded), path)
    finally:
        path.write_bytes(whole)
    assert (right.arrays["all.encodings"] == right.ids[:, None] * np.arange(1, WIDTH + 1)).all()
    assert right.faults == ["no JPEG"]
    if found is not None:
        assert np.isfinite(found.arrays["all.encodings"]).all()
        assert found.ids.tolist() == right.ids.tolist()


DAMAGES: dict[str, Callable[[Any], Any]] = {
    "another width": lambda values: values[:-1],
    "whole numbers": lambda values: values.astype(np.int32),
    "not a number": lambda values: np.where(np.arange(WIDTH) == 2, np.nan, values).astype(np.float32),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_encoding_of_another_kind_is_refused_with_its_film(encoded: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(encoded, tmp_path / "encoded"))
    path = next(folder.glob("*.tar"))
    records = np.load(index_path(path))
    film = int(records["id"][0])
    changed = DAMAGES[kind](np.arange(WIDTH, dtype=np.float32))
    written = encoded_sample(film, [28], changed, None).ljust(int(records["size"][0]), b"\0")
    path.write_bytes(written + path.read_bytes()[len(written) :])
    with pytest.raises(ValueError, match=rf"\.tar: the encoding of film {film} cannot be read \(not {WIDTH} finite"):
        encodings(folder)
