"""A lost index is made again from the tar, byte for byte."""

from pathlib import Path

import pytest

from genre_dist.cli import main
from genre_dist.prepare.pack import pack
from genre_dist.stream.manifest import load_manifest


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


def test_a_folder_without_a_manifest_is_no_folder_of_shards(tmp_path: Path) -> None:
    assert main(["index", str(tmp_path)]) == 2
