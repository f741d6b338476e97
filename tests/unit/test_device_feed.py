"""Batches for a GPU: slots that are pinned and not filled again too early, JPEGs decoded where the model runs."""

import itertools
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg
import torch

from genre_dist.config import DataConfig
from genre_dist.stream import device_feed as device_module
from genre_dist.stream import images as images_module
from genre_dist.stream.batch import Batch, slot_bytes
from genre_dist.stream.device_feed import DeviceFeed, device_feed, to_device, upload, whole_pixels
from genre_dist.stream.images import decode_images
from genre_dist.stream.loader import TrainStream
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import EpochOrder, Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.ring import Ring, batches

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BOTH = ("poster", "overview")


def reader(folder: Path, decode: bool = True) -> ShardReader:
    return ShardReader(load_manifest(folder), "train", BOTH, 64, decode)


def first_rows(source: ShardReader, n: int) -> Rows:
    return EpochOrder(source.index.sizes, n, seed=1, epoch=0).rows(0)


# ---- slots and copies that run in the background


class Event:
    """A copy that is done when somebody waits for it."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def synchronize(self) -> None:
        self.log.append(self.name)


def test_a_slot_is_filled_again_only_after_what_copies_from_it_is_done(sample_shards: Path) -> None:
    source, log = reader(sample_shards), list[str]()

    def rows() -> Iterator[Rows]:
        for number in itertools.count():
            log.append(f"ask {number}")
            yield first_rows(source, 4)

    with closing(batches(source, map(source.refs, rows()), samples=4, workers=1, prefetch=1, hold=1)) as stream:
        for number in range(4):
            next(stream).copied = Event(log, f"copied {number}")
    assert log == ["ask 0", "ask 1", "copied 0", "ask 2", "copied 1", "ask 3", "copied 2", "ask 4", "copied 3"]


def test_without_workers_slots_are_pinned_and_waited_for_as_well(sample_shards: Path) -> None:
    source, log = reader(sample_shards), list[str]()

    def pin(memory: mmap.mmap) -> Callable[[], None]:
        log.append(f"pin {len(memory)}")
        return lambda: log.append("unpin")

    rows = itertools.repeat(first_rows(source, 4))
    with closing(batches(source, map(source.refs, rows), samples=4, workers=0, hold=2, pin=pin)) as stream:
        for number in range(4):
            next(stream).copied = Event(log, f"copied {number}")
            log.append(f"batch {number}")
    assert log == [
        f"pin {2 * slot_bytes(source.slot_spec(4))}",
        *("batch 0", "batch 1", "copied 0", "batch 2", "copied 1", "batch 3", "copied 2", "copied 3", "unpin"),
    ]


def test_the_slots_are_pinned_once_and_let_go_after_the_last_copy_is_done(sample_shards: Path) -> None:
    source, log = reader(sample_shards), list[str]()

    def pin(memory: mmap.mmap) -> Callable[[], None]:
        log.append(f"pin {len(memory)}")
        return lambda: log.append("unpin")

    ring = Ring(source, 4, slots=3, workers=1, pin=pin)
    try:
        next(ring.run(iter([source.refs(first_rows(source, 4))]), hold=1)).copied = Event(log, "copied")
    finally:
        ring.close()
    assert log == [f"pin {len(ring.memory)}", "copied", "unpin"]


@pytest.mark.parametrize("code", [0, 2])
def test_pinning_registers_the_whole_memory_or_says_in_one_line_that_it_could_not(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[object, ...]] = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda *told: calls.append(told) or code, cudaHostUnregister=lambda *told: calls.append(told)
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    memory = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    DeviceFeed(CPU, decodes=False).pin(memory)()
    told = capsys.readouterr().err
    registered: list[tuple[object, ...]] = [(address, 3 * mmap.PAGESIZE, 0)]
    assert calls == registered + ([(address,)] if code == 0 else [])
    assert told.count("\n") == (code != 0)
    assert ("could not be pinned" in told) == (code != 0)


def test_on_a_cpu_nothing_is_copied(sample_shards: Path) -> None:
    source = reader(sample_shards)
    batch = source.read(first_rows(source, 4))
    moved = upload(batch.arrays, batch, CPU)
    assert batch.images is not None
    assert moved["poster.images"].data_ptr() == batch.images.ctypes.data
    assert batch.copied is None


# ---- where posters are decoded


def test_readers_that_do_not_decode_hand_on_the_jpegs_and_everything_else_alike(sample_shards: Path) -> None:
    source = reader(sample_shards)
    rows = first_rows(source, 12)
    pixels = source.read(rows)
    undecoded = reader(sample_shards, decode=False)
    with closing(batches(undecoded, [undecoded.refs(rows)], samples=12, workers=2)) as stream:
        jpegs = next(stream)
        assert jpegs.images is not None
        assert pixels.images is not None
        assert pixels.only("jpeg_bytes") is None
        for row, size, wanted in zip(jpegs.images, jpegs.arrays["poster.jpeg_bytes"], pixels.images, strict=True):
            assert np.array_equal(simplejpeg.decode_jpeg(row.tobytes()[:size], colorspace="RGB"), wanted)
        for name in ("ids", "labels", "weights", "tokens", "lengths"):
            assert np.array_equal(getattr(jpegs, name), getattr(pixels, name))


def test_decoding_on_the_device_gives_the_pixels_of_the_readers(sample_shards: Path) -> None:
    pytest.importorskip("torchcodec")
    source, undecoded = reader(sample_shards), reader(sample_shards, decode=False)
    rows = first_rows(source, 12)
    pixels, jpegs = source.read(rows), undecoded.read(rows)
    jpegs.arrays["poster.jpeg_bytes"][3] = 0  # a film that could not be read
    decode_images(jpegs, "poster", CPU)
    assert pixels.images is not None
    pixels.images[3] = 128
    difference = np.abs(jpegs.pixels["poster.images"].numpy().astype(int) - pixels.images.astype(int))
    assert difference.max() <= 4  # two builds of libjpeg-turbo
    inputs = to_device(jpegs, CPU, whole_pixels(DataConfig(image_size=32)))
    assert inputs.fields["poster"].values is not None
    assert inputs.fields["poster"].values.shape == (12, 3, 32, 32)


def test_a_poster_that_only_the_device_finds_damaged_becomes_blank_weighs_nothing_and_is_named(
    sample_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = reader(sample_shards, decode=False)
    batch = source.read(first_rows(source, 6))
    assert batch.images is not None
    batch.images[2].reshape(-1)[300:900] = 0

    def refuse(jpegs: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        raise RuntimeError("Error while decoding JPEG images")

    monkeypatch.setattr(images_module, "_decode", refuse)
    decode_images(batch, "poster", CPU)
    assert np.flatnonzero(batch.weights == 0).tolist() == [2]
    assert (batch.images[2] == 128).all()
    assert batch.images[1].std() > 0
    (line,) = batch.faults
    assert line.startswith(f"film {batch.ids[2]}: ")

    declared = source.read(first_rows(source, 6))
    assert declared.images is not None
    declared.images[2].reshape(-1)[300:900] = 0
    declared.samples = [f"sku-{n}" for n in range(6)]  # the ids of other data than TMDB's
    decode_images(declared, "poster", CPU)
    (line,) = declared.faults
    assert line.startswith("sample sku-2: ")


def test_a_jpeg_without_its_end_or_of_another_size_is_a_fault_already_for_the_reader(shards_copy: Path) -> None:
    source = reader(shards_copy, decode=False)
    path = shards_copy / source.index.shards[0].file
    data = bytearray(path.read_bytes())
    rows = Rows(np.zeros(3, np.int64), np.arange(3))
    end = int(source.index.records(rows)[1]["offset"] + source.index.records(rows)[1]["size"])
    head = data.index(b"\xff\xd8\xff", int(source.index.records(rows)[1]["offset"]))
    data[data.index(b"\xff\xd9", head, end)] = 0
    path.write_bytes(data)
    batch = source.read(rows)
    assert batch.weights.tolist() == [1, 0, 1]
    assert batch.arrays["poster.jpeg_bytes"][1] == 0
    assert "not a whole JPEG" in batch.faults[0]


def test_decoding_on_a_gpu_that_is_not_there_is_the_users_error() -> None:
    with pytest.raises(ValueError, match=r"data\.decode=gpu needs a CUDA device"):
        device_feed(CPU, "gpu")
    assert device_feed(CPU, "auto") is None


@pytest.mark.parametrize(
    ("wanted", "cores", "ranks", "gpu"),
    [("cpu", 1, 1, False), ("gpu", 64, 1, True), ("auto", 64, 8, False), ("auto", 8, 8, True), ("auto", 1, 1, True)],
)
def test_auto_decodes_on_the_gpu_where_a_rank_has_few_cores(
    wanted: device_module.Decoding, cores: int, ranks: int, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(images_module, "_decode", lambda jpegs, device: jpegs)
    feed = device_feed(CUDA, wanted)
    assert feed is not None
    assert feed.decodes == gpu


def test_a_gpu_that_cannot_decode_leaves_it_to_the_cpu_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(jpegs: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        raise RuntimeError("nvJPEG is not in this build\nand a long story")

    monkeypatch.setattr(images_module, "_decode", refuse)
    feed = device_feed(CUDA, "gpu")
    assert feed is not None
    assert not feed.decodes
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "nvJPEG is not in this build" in told


def test_without_torchcodec_the_cpu_decodes_and_the_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    feed = device_feed(CUDA, "gpu")
    assert feed is not None
    assert not feed.decodes
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pip install 'torchcodec>=0.17'" in told


# ---- with a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("wanted", ["cpu", "gpu"])
def test_on_cuda_batches_arrive_whole_from_pinned_slots(wanted: device_module.Decoding, sample_shards: Path) -> None:
    feed = device_feed(torch.device("cuda", 0), wanted)
    assert feed is not None
    source = ShardReader(load_manifest(sample_shards), "train", BOTH, 64, not feed.decodes)
    plain = reader(sample_shards)
    stream = TrainStream(source, global_batch=12, micro_batch=6, seed=1, workers=2, feed=feed)
    order = EpochOrder(plain.index.sizes, 12, seed=1, epoch=0)
    busy = torch.ones(4096, 4096, device=feed.device)
    with closing(stream.batches()) as steps:
        for step in range(6):
            for number, batch in enumerate(next(steps)):
                if batch.tokens is not None:
                    assert torch.from_numpy(batch.tokens).is_pinned()
                for _ in range(20):
                    busy @ busy  # the computing stream is far behind the copies
                moved = upload(batch.arrays | batch.pixels, batch, feed.device)
                images, tokens = moved["poster.images"], moved["text.tokens"]
                wanted_batch: Batch = plain.read(order.rows(step, 6 * number, 6 * number + 6))
                assert wanted_batch.images is not None
                difference = np.abs(images.cpu().numpy().astype(int) - wanted_batch.images.astype(int))
                # a GPU's decoder repeats colours where the CPU's interpolates: by up to 3 in the mean of small ones
                assert difference.max() == 0 if wanted == "cpu" else difference.mean() < 5
                assert np.array_equal(tokens.cpu().numpy(), wanted_batch.tokens)
