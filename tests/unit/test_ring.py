"""Batches through worker processes: the same bytes, bounded, and nothing left behind however it ends."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from telling_reader import TellingReader

from genre_dist.stream import ring
from genre_dist.stream.batch import Batch
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import EpochOrder, Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.ring import STOPPED_READER_SECONDS, Ring, batches

BATCH = 8


@pytest.fixture
def reader(sample_shards: Path) -> ShardReader:
    return ShardReader(load_manifest(sample_shards), "train", ("poster", "overview"), 64)


@pytest.fixture
def places(reader: ShardReader) -> list[Rows]:
    order = EpochOrder(reader.index.sizes, BATCH, seed=1, epoch=0)
    return [order.rows(step) for step in range(order.steps)]


def children() -> set[int]:
    """Processes started by this one that still run."""
    alive = set()
    for task in Path("/proc/self/task").iterdir():
        alive |= {int(pid) for pid in (task / "children").read_text().split()}
    return alive


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        os.sched_yield()


def same(one: Batch, other: Batch) -> bool:
    fields = ("ids", "labels", "weights", "images", "tokens", "lengths")
    return one.faults == other.faults and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in fields
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_give_the_bytes_that_reading_in_process_gives(
    reader: ShardReader, places: list[Rows], workers: int
) -> None:
    with closing(batches(reader, map(reader.refs, places), samples=BATCH, workers=workers)) as stream:
        for rows, batch in zip(places, stream, strict=True):
            assert same(batch, reader.read(rows))


def test_a_worker_on_local_shards_imports_only_what_it_reads_with(sample_shards: Path, places: list[Rows]) -> None:
    """Every worker imports anew before the first batch: what it needs not is time to wait."""
    reader = TellingReader(load_manifest(sample_shards), "train", ("poster", "overview"), 64)
    with closing(batches(reader, map(reader.refs, places), samples=BATCH, workers=1)) as stream:
        modules = set(next(stream).faults)
    packages = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    hooks = {name for name in packages if name.startswith("_") or name.endswith("customize")}  # of the installation
    shapes = {"annotated_types", "typing_extensions"}  # of what a manifest may hold; pydantic itself stays out
    assert packages - hooks <= {"genre_dist", "numpy", "simplejpeg", "cython_runtime", "telling_reader"} | shapes
    assert not modules & {"asyncio", "concurrent.futures", "logging", "secrets", "tarfile"}
    assert not {name for name in modules if name.startswith(("genre_dist.config", "genre_dist.progress"))}


def test_more_workers_than_samples_is_no_fault(reader: ShardReader, places: list[Rows]) -> None:
    short = [Rows(rows.shard[:2], rows.row[:2]) for rows in places[:3]] + [
        Rows(rows.shard[:0], rows.row[:0]) for rows in places[:1]
    ]
    with closing(batches(reader, map(reader.refs, short), samples=BATCH, workers=4)) as stream:
        assert [len(batch.ids) for batch in stream] == [2, 2, 2, 0]


def test_a_batch_stays_valid_until_hold_later_ones_are_asked_for(reader: ShardReader, places: list[Rows]) -> None:
    with closing(batches(reader, map(reader.refs, places), samples=BATCH, workers=2, prefetch=1, hold=3)) as stream:
        held = [next(stream) for _ in range(3)]
        for rows, batch in zip(places, held, strict=False):
            assert same(batch, reader.read(rows))


@pytest.mark.parametrize(("prefetch", "hold"), [(1, 1), (2, 3)])
def test_no_more_batches_are_begun_than_there_are_slots(
    reader: ShardReader, places: list[Rows], prefetch: int, hold: int
) -> None:
    begun: list[int] = []

    def endless() -> Iterator[Rows]:
        for number in itertools.count():
            begun.append(number)
            yield places[number % len(places)]

    with closing(
        batches(reader, map(reader.refs, endless()), samples=BATCH, workers=2, prefetch=prefetch, hold=hold)
    ) as stream:
        for number in range(6):
            next(stream)
            assert len(begun) <= number + prefetch + hold


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_leaves_no_process(reader: ShardReader, places: list[Rows], taken: int) -> None:
    before = children()
    stream = batches(reader, map(reader.refs, places), samples=BATCH, workers=2)
    for _ in range(taken):
        next(stream)
    assert len(children() - before) == (2 if taken else 0)
    stream.close()
    assert children() == before


def test_an_error_in_the_trainer_leaves_no_process(reader: ShardReader, places: list[Rows]) -> None:
    before = children()

    def fail() -> None:
        with closing(batches(reader, map(reader.refs, places), samples=BATCH, workers=2)) as stream:
            next(stream)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert children() == before


def test_a_killed_worker_is_an_error_that_says_so_and_leaves_no_process(
    reader: ShardReader, places: list[Rows]
) -> None:
    before = children()
    ring = Ring(reader, BATCH, slots=3, workers=2)
    try:
        stream = ring.run(itertools.cycle(map(reader.refs, places)), hold=1)
        next(stream)
        ring.processes[1].send_signal(signal.SIGKILL)
        with pytest.raises(ChildProcessError, match=f"pid {ring.processes[1].pid}.* killed by signal 9"):
            list(itertools.islice(stream, 100))
    finally:
        ring.close()
    assert children() == before


@pytest.mark.slow
def test_a_stopped_reader_is_named_and_the_wait_for_it_can_be_given_up(
    reader: ShardReader, places: list[Rows], capsys: pytest.CaptureFixture[str]
) -> None:
    before = children()

    def give_up(seconds: int) -> None:
        if seconds == STOPPED_READER_SECONDS:
            raise InterruptedError

    ring = Ring(reader, BATCH, slots=3, workers=1, waiting=give_up)
    try:
        stream = ring.run(itertools.cycle(map(reader.refs, places)), hold=1)
        next(stream)
        ring.processes[0].send_signal(signal.SIGSTOP)
        with pytest.raises(InterruptedError):
            list(stream)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"reader process {ring.processes[0].pid}, which is stopped" in line
    finally:
        ring.close()
    assert children() == before


@pytest.mark.slow
def test_a_reader_that_goes_on_in_time_is_waited_for(reader: ShardReader, places: list[Rows]) -> None:
    ring = Ring(reader, BATCH, slots=3, workers=2, waiting=lambda _: ring.processes[0].send_signal(signal.SIGCONT))
    try:
        stream = ring.run(map(reader.refs, places), hold=1)
        read = [next(stream).ids.tolist()]
        ring.processes[0].send_signal(signal.SIGSTOP)
        read += [batch.ids.tolist() for batch in stream]
    finally:
        ring.close()
    assert read == [reader.read(rows).ids.tolist() for rows in places]


def test_a_reader_that_cannot_take_over_its_work_says_so(
    reader: ShardReader, places: list[Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    monkeypatch.setattr(ShardReader, "__reduce__", lambda _: (__import__, ("a_script_of_the_users",)))
    with pytest.raises(ValueError, match=r"cannot take over its work \(ModuleNotFoundError: .*data\.workers=0"):
        next(batches(reader, map(reader.refs, places), samples=8, workers=1))
    assert children() <= before


def test_workers_end_when_one_of_them_cannot_be_started(
    reader: ShardReader, places: list[Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = ring._start_worker, []

    def failing(told: object) -> object:
        if started:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        started.append(start(told))  # type: ignore[arg-type]
        return started[0]

    monkeypatch.setattr(ring, "_start_worker", failing)
    with pytest.raises(OSError, match="Too many open files"):
        next(batches(reader, map(reader.refs, places), samples=8, workers=2))
    assert started[0][0].returncode is not None


def test_a_shard_without_its_index_is_the_users_error_and_names_the_file(shards_copy: Path) -> None:
    reader = ShardReader(load_manifest(shards_copy), "train", ("poster",), 64)
    shard = shards_copy / reader.index.shards[0].file
    index = shard.with_suffix(".index.npy")
    index.unlink()
    rows = Rows(np.zeros(2, np.int64), np.arange(2))
    with (
        closing(batches(reader, map(reader.refs, [rows]), samples=2, workers=1)) as stream,
        pytest.raises(ValueError, match=index.name),
    ):
        next(stream)


TRAINER = """
import itertools, sys
from genre_dist.stream import ring
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import EpochOrder
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.ring import Ring

reader = ShardReader(load_manifest(sys.argv[1]), "train", ("poster", "overview"), 64)
order = EpochOrder(reader.index.sizes, 8, 0, 0)
ring = Ring(reader, 8, slots=3, workers=2)
for batch in ring.run(itertools.cycle([reader.refs(order.rows(0))]), hold=1):
    print(*(process.pid for process in ring.processes), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_a_trainer_that_is_killed_and_nothing_has_a_name_in_shared_memory(
    sample_shards: Path, how: signal.Signals, stopped: bool
) -> None:
    command = [sys.executable, "-c", TRAINER, str(sample_shards)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background commands ignore it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    trainer = subprocess.Popen(command, **pipes, text=True, preexec_fn=heard)
    assert trainer.stdout is not None
    try:
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 2
        for pid in (trainer.pid, *workers):
            assert "/dev/shm/" not in Path(f"/proc/{pid}/maps").read_text()
        if stopped:
            os.kill(workers[0], signal.SIGSTOP)
        trainer.send_signal(how)
    finally:
        trainer.stdout.close()
        trainer.wait(timeout=20)
    wait_until(lambda: not any(_runs(pid) for pid in workers))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_go_on_through_signals_meant_for_the_trainer(
    reader: ShardReader, places: list[Rows], how: signal.Signals
) -> None:
    ring = Ring(reader, BATCH, slots=3, workers=2)
    try:
        stream = ring.run(map(reader.refs, places), hold=1)
        next(stream)
        for process in ring.processes:
            process.send_signal(how)
        assert sum(1 for _ in stream) == len(places) - 1
    finally:
        ring.close()
