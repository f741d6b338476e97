"""What the loader's memory and planning cost as data grows.

    python benchmarks/loader_scale.py [--quick] [--json FILE]

Memory: the proportional set size of a trainer and its two readers after some steps, at 1,000 to 100,000 samples (small
posters, real shards) and 1,000,000 (shards that exist, an index that says they hold more). Planning: one rank's view of
an epoch of 1e9 samples in 1e6 shards for 4,096 ranks of 8 workers.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import Row, options, report
from loader_contenders import set_size

from genre_dist.stream.index import RECORD, index_path
from genre_dist.stream.manifest import load_manifest, save_manifest

STEPS = 40


def main() -> None:
    arguments = options(__doc__ or "")
    made = []
    for row in rows(arguments.quick):
        made.append(row)
        print(f"{row.claim}: {row.value:.4g} {row.unit}", file=sys.stderr, flush=True)
    report(made, arguments.json)


def rows(quick: bool) -> Iterator[Row]:
    yield from _planning()
    yield from _memory(quick)


def _planning() -> list[Row]:
    told = json.loads(_child("plan"))
    goals = {"s": 1.0, "MiB": 100.0}
    claim = "planning an epoch of 1e9 samples in 1e6 shards, 4,096 ranks x 8 workers, one rank, with its first step"
    return [
        Row(claim=f"{claim}: {what}", value=told[unit], unit=unit, goal=f"<= {most}", holds=told[unit] <= most)
        for what, unit, most in (("time", "s", goals["s"]), ("memory", "MiB", goals["MiB"]))
    ]


def _memory(quick: bool) -> Iterator[Row]:
    from genre_dist.catalogue.sample_films import make_sample  # not in the processes that are measured
    from genre_dist.packing.pack import pack

    counts = (1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    with tempfile.TemporaryDirectory() as name:
        small = Path(name, "small")
        make_sample(1_300, 0, small / "catalogue", (32, 48))
        pack(small / "catalogue", small / "shards", size=32, shard_size=1_000, workers=2)
        first = 0.0
        for count in (*counts, 1_000_000):
            simulated = count == 1_000_000
            make = _simulated if simulated else _multiplied
            mib = _measured(make(small / "shards", Path(name, str(count)), count))
            first = first or mib
            case = f"{count:,} samples" + (" (simulated index)" if simulated else "")
            yield Row(claim=f"memory of trainer and 2 readers (PSS), {case}", value=mib, unit="MiB")
            if count > 10_000:
                grown = (mib - first) * 2**20 / count
                claim = f"growth of memory against 1,000 samples, {case}"
                yield Row(claim=claim, value=grown, unit="bytes a sample", goal="<= 24", holds=grown <= 24)


def _measured(shards: Path) -> float:
    return float(json.loads(_child("memory", str(shards)))["MiB"])


def _child(*arguments: str) -> str:
    command = [sys.executable, __file__, "--child", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def _multiplied(shards: Path, folder: Path, samples: int) -> Path:
    """The same shards many times over, under other names: every one is a file of its own."""
    folder.mkdir()
    manifest = load_manifest(shards)
    made = []
    for number in range(samples // 1_000):
        for shard in manifest.shards_of("train"):
            file = f"{number:04d}-{shard.file}"
            shutil.copy(shards / shard.file, folder / file)
            shutil.copy(index_path(shards / shard.file), index_path(folder / file))
            made.append(replace(shard, file=file))
    shutil.copy(shards / "vocabulary.txt", folder)
    save_manifest(replace(manifest, folder=folder, shards=tuple(made)))
    return folder


def _simulated(shards: Path, folder: Path, samples: int, shard_size: int = 10_000) -> Path:
    """Shards whose index lists their samples again and again: as many records, the same bytes of film."""
    folder.mkdir()
    manifest = load_manifest(shards)
    shard = manifest.shards_of("train")[0]
    records = np.load(index_path(shards / shard.file))
    many = np.resize(records, shard_size).astype(RECORD)
    made = []
    for number in range(samples // shard_size):
        file = f"train-{number:06d}.tar"
        os.symlink((shards / shard.file).resolve(), folder / file)
        np.save(index_path(folder / file), many)
        made.append(
            replace(shard, file=file, samples=shard_size, poster=shard_size, overview=shard_size, both=shard_size)
        )
    shutil.copy(shards / "vocabulary.txt", folder)
    save_manifest(replace(manifest, folder=folder, shards=tuple(made)))
    return folder


# ---- in processes of their own


def _memory_child(shards: str) -> None:
    from genre_dist.stream import ShardReader, TrainStream

    reader = ShardReader(load_manifest(shards), "train", ("poster", "overview"), 64)
    stream = TrainStream(reader, global_batch=64, micro_batch=64, seed=0, workers=2)
    steps = max(STEPS, len(stream) // 4) if len(stream) < 4_000 else 1_000
    with closing(stream.batches()) as batches:
        for _ in itertools.islice(batches, steps):
            pass
        print(json.dumps({"MiB": set_size(os.getpid()) / 2**20}))


def _plan_child() -> None:
    import resource
    import time

    from genre_dist.stream.order import EpochOrder

    ranks, share = 4_096, 8 * 4
    sizes = np.full(1_000_000, 1_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    order = EpochOrder(sizes, global_batch=ranks * share, seed=0, epoch=3)
    for step in (0, order.steps // 2):
        for worker in range(8):
            lanes = 77 * share + 4 * worker
            assert len(order.rows(step, lanes, lanes + 4).row) == 4
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"s": seconds, "MiB": grown + sizes.nbytes / 2**20}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        {"plan": _plan_child, "memory": _memory_child}[sys.argv[2]](*sys.argv[3:])
    else:
        main()
