"""Shards behind HTTP and S3: the same batches, each byte once, patience with a server in trouble, a bounded cache."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fuzzing import within_memory
from helpers import losses, options
from range_server import RangeServer, serve_folder

from genre_dist import storage
from genre_dist.cli import main
from genre_dist.compare.differences import read_film_info
from genre_dist.config import ParallelConfig
from genre_dist.stream import ShardReader, TrainStream, evaluation_stream, load_manifest
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.manifest import Manifest
from genre_dist.train import main as train

pytestmark = pytest.mark.slow

MEMBERS = ("poster", "overview")


@pytest.fixture(scope="module")
def served(sample_shards: Path) -> Iterator[RangeServer]:
    with serve_folder(sample_shards) as server:
        yield server


@pytest.fixture
def server(served: RangeServer) -> RangeServer:
    """A well-behaved server, its record empty."""
    served.ranges = True
    served.fail = {}
    served.forget()
    return served


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that a test can afford, in this process."""
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(storage, "SILENCE_SECONDS", 0.5)


def test_a_server_that_drips_is_given_up_before_the_other_ranks_take_it_to_hang() -> None:
    pauses = (storage.ATTEMPTS - 1) * storage.LONGEST_BACKOFF_SECONDS
    assert storage.ATTEMPTS * storage.ANSWER_SECONDS + pauses < ParallelConfig().timeout_seconds


def reader_of(folder: str | Path, split: str = "train", cache: BlockCache | None = None) -> ShardReader:
    return ShardReader(load_manifest(folder), split, MEMBERS, 64, cache=cache)


def steps(
    folder: str | Path, first: int, last: int, *, world: int = 1, rank: int = 0, workers: int = 0, **options: object
) -> list[list[bytes]]:
    """The pixels, texts and ids of some steps of a rank."""
    stream = TrainStream(
        reader_of(folder, cache=options.pop("cache", None)),  # type: ignore[arg-type]
        global_batch=12,
        micro_batch=3,
        seed=1,
        block=4,
        world=world,
        rank=rank,
        workers=workers,
        **options,  # type: ignore[arg-type]
    )
    batches = stream.batches(first)
    found = []
    for _ in range(first, last):
        found.append([part.tobytes() for b in next(batches) for part in (b.ids, b.images, b.tokens, b.weights)])
    batches.close()
    return found


def needed(manifest: Manifest, split: str) -> int:
    return sum(shard.bytes - 1024 for shard in manifest.shards_of(split))


@pytest.mark.parametrize(("workers", "by_length"), [(0, 0.0), (0, 1.0), (2, 0.0)])
def test_remote_shards_give_the_batches_of_local_ones_over_the_end_of_an_epoch_and_from_any_step(
    server: RangeServer, sample_shards: Path, workers: int, by_length: float
) -> None:
    for first, last in ((0, 30), (7, 11))[: 1 if workers else 2]:
        remote = steps(server.url, first, last, workers=workers, by_length=by_length)
        assert remote == steps(sample_shards, first, last, by_length=by_length)


def test_an_epoch_reads_each_byte_once_over_all_ranks(server: RangeServer, sample_shards: Path) -> None:
    manifest = load_manifest(sample_shards)
    epochs, steps_an_epoch = 4, -(-manifest.samples("train", MEMBERS) // 12)
    for rank in range(2):
        steps(server.url, 0, epochs * steps_an_epoch, world=2, rank=rank, workers=2)
    # what was asked for ahead of the fifth epoch's first steps is part of the count
    assert 1.0 <= server.bytes_of(".tar") / (epochs * needed(manifest, "train")) <= 1.1
    asked = [request for request in server.requests if request[0].endswith(".tar")]
    inside = [request for request in asked if request[0].startswith("/train")]
    assert len(inside) < epochs * manifest.samples("train") / 2, "neighbours are asked for together"


def test_evaluation_reads_each_byte_once_over_all_ranks(server: RangeServer, sample_shards: Path) -> None:
    for rank, workers in ((0, 0), (1, 2)):
        batches = evaluation_stream(reader_of(server.url, "val"), batch=5, world=2, rank=rank, workers=workers)
        there = evaluation_stream(reader_of(sample_shards, "val"), batch=5, world=2, rank=rank, workers=0)
        for ours, theirs in zip(batches, there, strict=True):
            assert np.array_equal(ours.ids, theirs.ids)
            assert np.array_equal(ours.images, theirs.images)
    assert server.bytes_of(".tar") == needed(load_manifest(sample_shards), "val")


def test_training_and_evaluating_take_the_address_of_a_server_for_a_folder(
    server: RangeServer, sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("--data.global_batch", 12, "--train.steps", 3, "--data.workers", 0)
    assert train(options(server.url, run, *more)) == 0
    assert list(losses(run)) == [1, 2, 3]
    assert server.bytes_of(".tar") > 0
    predictions = run / "predictions-val.parquet"
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    from_afar = predictions.read_bytes()
    assert main(["evaluate", str(run), "--split", "val", "--shards", str(sample_shards)]) == 0
    assert predictions.read_bytes() == from_afar
    two = next(evaluation_stream(reader_of(sample_shards, "val"), batch=2, workers=0)).ids.tolist()
    assert read_film_info(server.url, "val", two) == read_film_info(sample_shards, "val", two)


@pytest.mark.parametrize("trouble", ["503", "429", "cut", "slow", "hang"])
def test_a_server_in_passing_trouble_is_asked_again(
    server: RangeServer, sample_shards: Path, hurried: None, trouble: str
) -> None:
    server.fail = {".tar": [trouble] * 3, "manifest.json": [trouble], ".npy": [trouble]}
    assert steps(server.url, 0, 3) == steps(sample_shards, 0, 3)
    assert not any(server.fail.values())


@pytest.mark.parametrize("trouble", ["500", "cut"])
def test_a_server_that_keeps_failing_ends_in_an_error_that_names_the_shard(
    server: RangeServer, hurried: None, trouble: str
) -> None:
    server.fail = {"train-000001.tar": [trouble] * 1000}
    with pytest.raises(ValueError, match=rf"{server.url}/train-000001\.tar: cannot be read.*after 5 attempts"):
        steps(server.url, 0, 20)


def test_a_failing_server_ends_a_stream_with_workers_too(server: RangeServer) -> None:
    server.fail = {"train-000001.tar": ["403"] * 1000}  # is not asked again
    with pytest.raises(ValueError, match=rf"{server.url}/train-000001\.tar: cannot be read.*the server answers 403"):
        steps(server.url, 0, 20, workers=2)


@pytest.mark.parametrize("lie", ["another range", "fewer bytes", "more bytes", "gzip"])
def test_an_answer_that_is_not_what_was_asked_for_is_asked_for_again_and_then_refused(
    server: RangeServer, sample_shards: Path, hurried: None, lie: str
) -> None:
    server.fail = {".tar": [lie] * 3}
    assert steps(server.url, 0, 3) == steps(sample_shards, 0, 3)
    assert not any(server.fail.values())
    server.fail = {"train-000001.tar": [lie] * 1000}
    with pytest.raises(ValueError, match=rf"{server.url}/train-000001\.tar: cannot be read.*bytes.*after 5 attempts"):
        steps(server.url, 0, 20)


def test_a_shard_that_has_another_size_now_is_named(server: RangeServer, hurried: None) -> None:
    server.fail = {"train-000001.tar": ["another size"] * 1000}
    with pytest.raises(ValueError, match=r"train-000001\.tar: cannot be read .*it has \d+ bytes now, not [\d,]+"):
        steps(server.url, 0, 20)


def test_a_whole_file_that_is_sent_compressed_is_read(server: RangeServer, sample_shards: Path) -> None:
    server.fail = {"manifest.json": ["gzip"]}
    assert load_manifest(server.url).fingerprint == load_manifest(sample_shards).fingerprint


@pytest.mark.parametrize("file", ["manifest.json", "train-000000.index.npy"])
def test_no_more_of_a_file_is_read_than_it_can_have(
    shards_copy: Path, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(shards_copy / file, "ab") as opened:
        opened.truncate(200 << 20)
    with serve_folder(shards_copy) as server, pytest.raises(ValueError, match=rf"{file}: more than [\d,]+ bytes"):
        steps(server.url, 0, 1)
    assert server.sent[f"/{file}"] < 150 << 20
    with pytest.raises(ValueError, match=file):
        steps(shards_copy, 0, 1)


def test_a_limit_takes_no_memory_that_the_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"abc")
    with within_memory(100 << 20):
        assert storage.read_bytes(tmp_path / "small", 1 << 30) == b"abc"
    assert storage.read_bytes(tmp_path / "small", 3) == b"abc"
    with pytest.raises(ValueError, match="small: more than 2 bytes"):
        storage.read_bytes(tmp_path / "small", 2)


def test_a_server_without_range_requests_gets_a_message_that_says_so(server: RangeServer, hurried: None) -> None:
    server.ranges = False
    with pytest.raises(ValueError, match=r"train-00000\d\.tar: .* range requests .* copy the folder here"):
        steps(server.url, 0, 20)


def test_a_missing_shard_and_a_missing_manifest_are_named(
    server: RangeServer, sample_shards: Path, hurried: None
) -> None:
    with pytest.raises(ValueError, match=rf"no shards in {server.url}/nowhere "):
        load_manifest(f"{server.url}/nowhere")
    server.fail = {"train-000000.tar": ["404"] * 1000}
    with pytest.raises(ValueError, match=r"train-000000\.tar is not there; the manifest names it"):
        steps(server.url, 0, 20)


def test_a_damaged_sample_is_a_fault_of_its_own_also_from_afar(shards_copy: Path) -> None:
    reader = reader_of(shards_copy)
    path = reader.index.paths[0]
    assert isinstance(path, Path)
    data = bytearray(path.read_bytes())
    data[1000:1200] = bytes(200)
    path.write_bytes(data)
    with serve_folder(shards_copy) as server:
        ours = [b.faults for b in evaluation_stream(reader_of(server.url), batch=16, workers=0)]
        theirs = [b.faults for b in evaluation_stream(reader, batch=16, workers=0)]
    assert [len(faults) for faults in ours] == [len(faults) for faults in theirs]
    assert sum(map(len, ours)) >= 1


def test_with_a_cache_the_second_epoch_asks_for_nothing(
    server: RangeServer, sample_shards: Path, tmp_path: Path
) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 30)
    local = steps(sample_shards, 0, 40)
    assert steps(server.url, 0, 40, cache=cache) == local
    files = {path: path.stat().st_size for path in sample_shards.glob("train-*.tar")}
    assert server.bytes_of(".tar") <= 1.1 * sum(files.values())
    server.forget()
    assert steps(server.url, 0, 40, cache=cache, workers=1) == local
    assert server.bytes_of(".tar") == 0
