"""More shards than a process may have files open: read all the same, and a limit that is too low is said to be that."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from genre_dist.parallel.world import all_ranks
from genre_dist.stream import load_manifest
from genre_dist.stream.index import index_path
from genre_dist.stream.manifest import save_manifest

SHARDS = 150
READ = """
import resource, sys
from genre_dist.stream import ShardReader, TrainStream, evaluation_stream, load_manifest

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
manifest = load_manifest(sys.argv[1])
"""


@pytest.fixture(scope="module")
def many(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 shards of the same films. Read only."""
    folder, manifest = tmp_path_factory.mktemp("many"), load_manifest(sample_shards)
    shard = manifest.shards_of("train")[0]
    made = []
    for number in range(SHARDS):
        file = f"train-{number:06d}.tar"
        os.symlink(sample_shards / shard.file, folder / file)
        shutil.copy(index_path(sample_shards / shard.file), index_path(folder / file))
        made.append(replace(shard, file=file))
    save_manifest(replace(manifest, folder=folder, shards=tuple(made)))
    return folder


def run(folder: Path, soft: int, hard: int, program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", READ + program, str(folder), str(soft), str(hard)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_more_shards_are_read_than_files_may_be_open(many: Path, workers: int) -> None:
    program = f"""
faults = films = 0
first = ShardReader(manifest, "train", ("overview",), 64)
second = ShardReader(manifest, "train", ("overview",), 64)
stream = TrainStream(first, global_batch=300, micro_batch=100, seed=0, workers={workers})
both = zip(stream.batches(), evaluation_stream(second, batch=600, workers={workers}))
for step, other in both:
    for batch in [*step, other]:
        films += len(batch.ids)
        faults += len(batch.faults)
print(films, faults)
"""
    done = run(many, 96, 96, program)
    assert done.returncode == 0, done.stderr
    films = SHARDS * load_manifest(many).shards[0].samples
    steps = -(-films // 600)
    assert done.stdout.split() == [str(steps * 300 + films), "0"]


def test_the_limit_is_raised_as_far_as_the_process_may(many: Path) -> None:
    program = 'ShardReader(manifest, "train", ("overview",), 64)\nprint(*resource.getrlimit(resource.RLIMIT_NOFILE))'
    assert run(many, 100, 200, program).stdout.split() == ["200", "200"]


def test_readers_go_on_with_fewer_files_where_the_rest_of_the_process_has_taken_the_others(many: Path) -> None:
    program = """
reader = ShardReader(manifest, "train", ("overview",), 64)
taken, films = [], 0
for number, batch in enumerate(evaluation_stream(reader, batch=600, workers=0)):
    if number == 1:
        try:
            while True:
                taken.append(open("/dev/null"))
        except OSError:
            taken.pop().close()
    films += len(batch.ids) - len(batch.faults)
print(films)
"""
    done = run(many, 256, 256, program)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == SHARDS * load_manifest(many).shards[0].samples


def test_an_index_that_cannot_be_opened_for_too_many_files_is_not_called_damaged(many: Path) -> None:
    program = """
import numpy.ma  # NumPy does that in passing
reader = ShardReader(manifest, "train", ("overview",), 64)
taken = []
try:
    while True:
        taken.append(open("/dev/null"))
except OSError:
    pass
try:
    next(evaluation_stream(reader, batch=6, workers=0))
except ValueError as error:
    taken.clear()
    print(error)
"""
    done = run(many, 64, 64, program)
    assert "train-000000.index.npy: the shard's index cannot be read (Too many open files)" in done.stdout, done.stderr
    assert "genre-dist index" not in done.stdout


def test_what_gloo_says_of_descriptors_is_said_in_one_line_with_the_way_out() -> None:
    enforce = "[enforce fail at gloo/transport/tcp/device.cc:189] rv != -1. -1 vs -1. Too many open files"
    with pytest.raises(OSError, match=r"Too many open files: `ulimit -n` allows \d+, raise it"), all_ranks():
        raise RuntimeError(enforce)
    with pytest.raises(RuntimeError, match="something else"), all_ranks():
        raise RuntimeError("something else")
