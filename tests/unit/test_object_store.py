"""Packing from and to an object store, and training data from it: a real S3-compatible server on loopback."""

import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from helpers import losses, options, snapshot

from genre_dist.cli import main
from genre_dist.packing import shard as shard_module
from genre_dist.packing.pack import merge_parts, pack, pack_part
from genre_dist.packing.vectors import read_vectors
from genre_dist.packing.verification import verify
from genre_dist.storage import any_path, sha256_of
from genre_dist.stream import ShardReader, TarReader, TrainStream, evaluation_stream, load_manifest, load_tars
from genre_dist.train import main as train

pytestmark = pytest.mark.slow

OPTIONS = {"size": 72, "shard_size": 50}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket of moto's server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("films")
        yield "s3://films"
    server.stop()


@pytest.fixture(scope="module")
def uploaded(bucket: str, sample_catalogue: Path) -> str:
    """The sample's catalogue in the bucket."""
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.put(f"{sample_catalogue}/", f"{bucket}/catalogue/", recursive=True)
    return f"{bucket}/catalogue"


def contents(url: str) -> dict[str, bytes]:
    """Every file below a URL, by its path there."""
    store = any_path(url).fs  # type: ignore[union-attr]
    store.invalidate_cache()
    root = any_path(url).path.strip("/")  # type: ignore[union-attr]
    return {path.strip("/").removeprefix(f"{root}/"): store.cat_file(path) for path in store.find(root)}


def test_a_pack_from_and_to_s3_has_the_bytes_of_a_local_one_and_trains_and_verifies(
    uploaded: str, bucket: str, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{bucket}/shards"
    assert main(["pack", "--catalogue", uploaded, "--out", out, "--size", "72", "--shard_size", "50"]) == 0
    assert contents(out) == snapshot(sample_shards)
    assert main(["inspect", out, "--verify"]) == 0
    assert main(["order", out, "--global_batch", "8", "--steps", "0:3"]) == 0
    printed = capsys.readouterr().out
    assert main(["order", str(sample_shards), "--global_batch", "8", "--steps", "0:3"]) == 0
    assert printed.endswith(capsys.readouterr().out)

    def some_steps(folder: str | Path, workers: int) -> list[bytes]:
        reader = ShardReader(load_manifest(folder), "train", ("poster", "overview"), 64)
        stream = TrainStream(reader, global_batch=8, micro_batch=8, seed=0, workers=workers)
        batches = stream.batches()
        found = [next(batches)[0] for _ in range(1)]
        data = [part.tobytes() for batch in found for part in (batch.ids, batch.images)]
        batches.close()
        return data

    assert some_steps(out, workers=1) == some_steps(sample_shards, workers=0)


def test_training_and_evaluating_take_the_url_of_an_object_store_for_a_folder(
    bucket: str, sample_shards: Path, tmp_path: Path
) -> None:
    shards = f"{bucket}/uploaded"
    fsspec.filesystem("s3", skip_instance_cache=True).put(f"{sample_shards}/", f"{shards}/", recursive=True)
    more = ("--data.global_batch", 12, "--train.steps", 3, "--data.workers", 1)
    near, afar = tmp_path / "near", tmp_path / "afar"
    assert train(options(sample_shards, near, *more)) == 0
    assert train(options(shards, afar, *more)) == 0
    assert losses(afar) == losses(near)
    assert main(["evaluate", str(afar), "--split", "val"]) == 0
    from_afar = (afar / "predictions-val.parquet").read_bytes()
    assert main(["evaluate", str(afar), "--split", "val", "--shards", str(sample_shards)]) == 0
    assert (afar / "predictions-val.parquet").read_bytes() == from_afar


def test_an_interrupted_pack_to_an_object_store_has_no_manifest_and_goes_on(
    sample_catalogue: Path, sample_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = any_path("memory://interrupted/shards")
    from genre_dist.packing import pack as packing

    packed: list[str] = []

    def stop_at_the_third(job: shard_module.Job) -> dict[str, object]:
        if len(packed) == 2:
            raise KeyboardInterrupt
        packed.append(job.file)
        return shard_module.pack_shard(job)

    monkeypatch.setattr(packing, "pack_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        pack(sample_catalogue, out, **OPTIONS)
    there = contents("memory://interrupted/shards")
    assert "manifest.json" not in there
    assert {name for name in there if name.endswith(".tar")} == set(packed)
    monkeypatch.setattr(packing, "pack_shard", lambda job: packed.append(job.file) or shard_module.pack_shard(job))
    pack(sample_catalogue, out, **OPTIONS)
    assert len(packed) == len(set(packed)), "what was finished is left alone"
    assert contents("memory://interrupted/shards") == snapshot(sample_shards)
    assert verify(load_manifest(out)) == []


@pytest.mark.parametrize("kind", [".txt", ".txt.gz", ".zip"])
def test_word_vectors_are_read_from_an_object_store(tmp_path: Path, kind: str) -> None:
    text, file = b"young 1 2 3\nwoman 4 5 6\n", io.BytesIO()
    if kind == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("vectors.txt", text)
    else:
        file.write(gzip.compress(text) if kind == ".txt.gz" else text)
    there = any_path(f"memory://vectors/glove{kind}")
    there.fs.pipe_file(there.path, file.getvalue())
    (tmp_path / there.name).write_bytes(file.getvalue())
    found = read_vectors(there, {"woman"}).by_word
    assert {word: vector.tolist() for word, vector in found.items()} == {"woman": [4, 5, 6]}
    assert sha256_of(there) == sha256_of(tmp_path / there.name)
    with pytest.raises(ValueError, match="no such file of word vectors"):
        read_vectors(any_path("memory://vectors/none.txt"), {"woman"})


def test_parts_merge_on_an_object_store(sample_catalogue: Path, sample_shards: Path) -> None:
    out = any_path("memory://parts/shards")
    pack_part(sample_catalogue, out, (0, 2), **OPTIONS)
    with pytest.raises(ValueError, match=r"not finished.*--part 1/2"):
        merge_parts(sample_catalogue, out, **OPTIONS)
    pack_part(sample_catalogue, out, (1, 2), **OPTIONS)
    merge_parts(sample_catalogue, out, **OPTIONS)
    assert contents("memory://parts/shards") == snapshot(sample_shards)


def test_an_index_is_made_again_on_an_object_store_and_foreign_tars_are_listed_there(
    bucket: str, sample_shards: Path
) -> None:
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.put(f"{sample_shards}/", f"{bucket}/again/", recursive=True)
    index = f"{bucket}/again/train-000000.index.npy"
    store.rm_file(index)
    assert main(["index", f"{bucket}/again"]) == 0
    store.invalidate_cache()
    assert store.cat_file(index) == (sample_shards / "train-000000.index.npy").read_bytes()
    store.rm_file(f"{bucket}/again/manifest.json")
    any_path(bucket).fs.invalidate_cache()  # type: ignore[union-attr]
    assert main(["index", f"{bucket}/again", "--workers", "1"]) == 0
    tars = load_tars(f"{bucket}/again")
    found = list(evaluation_stream(TarReader(tars, ("jpg",)), batch=100, workers=0))
    ids = np.concatenate([batch.ids.copy() for batch in found])
    assert len(ids) == sum(shard.samples for shard in load_manifest(sample_shards).shards)


def test_a_web_server_cannot_be_packed_to(sample_catalogue: Path) -> None:
    with pytest.raises(ValueError, match=r"can only be read; write to a folder or to s3"):
        pack(sample_catalogue, any_path("http://127.0.0.1:9/shards"), overwrite=True, **OPTIONS)
