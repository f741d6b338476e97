"""A lost index is made again from the tar, byte for byte."""

import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genre_dist.cli import main
from genre_dist.lock import one_writer
from genre_dist.packing.pack import pack
from genre_dist.stream import tar
from genre_dist.stream.index import index_path
from genre_dist.stream.manifest import load_manifest, save_manifest


def indexes(shards: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in shards.glob("*.index.npy")}


@pytest.mark.parametrize("require", [("poster", "overview"), ("overview",), ()])
def test_the_index_made_again_is_the_one_packing_made(
    sample_catalogue: Path, tmp_path: Path, require: tuple[str, ...]
) -> None:
    pack(sample_catalogue, tmp_path, size=40, shard_size=50, require=require)
    packed = indexes(tmp_path)
    for number, path in enumerate(sorted(tmp_path.glob("*.index.npy"))):
        if number % 2:
            path.unlink()
        else:
            path.write_bytes(b"damaged")
    assert main(["index", str(tmp_path)]) == 0
    assert indexes(tmp_path) == packed
    assert main(["inspect", str(tmp_path), "--verify"]) == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_tar_is_named(shards_copy: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    tar = shards_copy / load_manifest(shards_copy).shards[1].file
    if damage == "gone":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[: 5000 if damage == "cut" else 0])
    assert main(["index", str(shards_copy)]) == 2
    assert tar.name in capsys.readouterr().err


def changed(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    """The first shard with other bytes, its size in the manifest."""
    manifest = load_manifest(folder)
    path = folder / manifest.shards[0].file
    path.write_bytes(change(path.read_bytes()))
    first = replace(manifest.shards[0], bytes=path.stat().st_size)
    save_manifest(replace(manifest, shards=(first, *manifest.shards[1:])))
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[: len(data) // 2 // 512 * 512], "bytes where the manifest has"),
        (lambda data: data + b"more", "bytes where the manifest has"),
    ],
)
def test_a_shard_of_another_size_than_the_manifests_is_refused(
    shards_copy: Path, change: Callable[[bytes], bytes], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shards_copy / load_manifest(shards_copy).shards[0].file
    path.write_bytes(change(path.read_bytes()))
    before = indexes(shards_copy)
    assert main(["index", str(shards_copy)]) == 2
    told = capsys.readouterr().err
    assert f"{path}: " in told
    assert reason in told
    assert indexes(shards_copy) == before


def without_last_member(data: bytes) -> bytes:
    last = list(tar.members(data))[-1]
    return data[: last.header] + tar.END


def with_a_link(data: bytes) -> bytes:
    poster = next(member for member in tar.members(data) if member.name.endswith(".jpg"))
    info = tarfile.TarInfo(poster.name)
    info.type, info.linkname = tarfile.LNKTYPE, "other.jpg"
    return data[: poster.header] + info.tobuf(tarfile.USTAR_FORMAT) + data[poster.start + tar.padded(poster.size) :]


def with_a_long_id(data: bytes) -> bytes:
    first = next(tar.members(data))
    return tar.header("9" * 30 + ".json", first.size) + data[512:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_last_member, "where the manifest has"),
        (with_a_link, "49 samples with poster where the manifest has 50"),
        (with_a_long_id, "'999999999999999999999999999999' is not named by a film's id"),
    ],
)
def test_a_shard_that_lacks_what_the_manifest_counts_is_refused(
    shards_copy: Path, change: Callable[[bytes], bytes], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(shards_copy, change)
    assert main(["index", str(shards_copy)]) == 2
    told = capsys.readouterr().err
    assert f"{path}: " in told
    assert reason in told


def test_a_text_that_cannot_be_read_costs_its_film_alone(shards_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(shards_copy, lambda data: data.replace(b"\x93NUMPY", b"damaged!"[:6], 1))
    before = np.load(index_path(path))
    assert main(["index", str(shards_copy)]) == 0
    assert "note: 1 texts cannot be read" in capsys.readouterr().out
    after = np.load(index_path(path))
    assert np.flatnonzero(before["tokens"] != after["tokens"]).tolist() == [0]
    assert (before[["id", "offset", "size", "has"]] == after[["id", "offset", "size", "has"]]).all()


def test_one_process_at_a_time_makes_indexes(shards_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_writer(shards_copy):
        assert main(["index", str(shards_copy)]) == 2
    assert "is being written by process" in capsys.readouterr().err


def test_a_folder_without_a_manifest_is_no_folder_of_shards(tmp_path: Path) -> None:
    assert main(["index", str(tmp_path)]) == 2
