"""How near the loader comes to the speed of JPEG decoding itself, and how the field's loaders do on the same films.

    python benchmarks/loader.py [--quick] [--json FILE] [--cache FOLDER]

Each measurement is a process of its own (loader_contenders.py); one of each in turn, round after round, on the same
images, decoded by the same decoder to the same arrays, with the same number of workers. The limit is decoding in place
from the page cache and nothing else. The peers are installed into environments under --cache, once; one that cannot be
had is left out with the reason. --quick has no peers but webdataset and ImageFolder.

With it, alone or in the full run: memory and planning (loader_scale.py), quality of shuffling (shuffle.py).
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import loader_data
import loader_scale
import numpy as np
import shuffle
from common import Row, measured, report

from genre_dist.acquire.sample import make_sample
from genre_dist.prepare.pack import pack
from genre_dist.stream.decode import DECODERS

CONTENDERS = Path(__file__).with_name("loader_contenders.py")
PACKED_BY = {"mosaicml-streaming": "mds", "litdata": "litdata"}
Rates = dict[str, list[dict[str, float]]]


def main() -> None:
    arguments = _options()
    films, rounds = (600, 2) if arguments.quick else (4000, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sample(films, 0, folder / "catalogue", (342, 513))
        pack(folder / "catalogue", folder / "shards", size=256, shard_size=250, workers=2)
        pythons = interpreters(folder, [] if arguments.quick else list(loader_data.PEERS), arguments.cache)
        rows = decoders(folder, rounds)
        for workers in (0, 2) if arguments.quick else (0, 1, 2):
            rows += compare(folder, pythons, workers, rounds)
        if not arguments.quick:
            rows += resuming(folder, pythons, rounds)
    rows += loader_scale.rows(arguments.quick) + shuffle.rows(arguments.quick)
    report(rows, arguments.json)


def interpreters(folder: Path, peers: list[str], cache: Path) -> dict[str, str]:
    """The contenders that can be had, each with its interpreter; their formats are written."""
    pythons = dict.fromkeys(("decode limit", "genre_dist", "webdataset, these shards"), sys.executable)
    loader_data.write_webdataset(folder)
    loader_data.write_imagefolder(folder)
    pythons |= dict.fromkeys(("webdataset, its own shards", "ImageFolder"), sys.executable)
    for peer in peers:
        python = loader_data.environment(peer, cache)
        if isinstance(python, str):
            print(f"{peer} is left out: {python}", file=sys.stderr)
            continue
        try:
            if peer == "megatron-energon":
                loader_data.write_energon(folder, python)
            else:
                script = str(CONTENDERS.with_name("loader_data.py"))
                command = [str(python), script, PACKED_BY[peer], str(folder)]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except subprocess.SubprocessError as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            print(f"{peer} is left out, its format could not be written: {said[-1]}", file=sys.stderr)
            continue
        pythons[peer] = str(python)
    return pythons


def run(python: str, *arguments: str) -> dict[str, float]:
    """One contender, once."""
    command = [python, str(CONTENDERS), *arguments]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
    told: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return told


def compare(folder: Path, pythons: dict[str, str], workers: int, rounds: int) -> list[Row]:
    """Rates, time to the first batch and memory of all, and ratios within each round."""
    told: Rates = {name: [] for name in pythons}
    for _ in range(rounds):
        for name, python in pythons.items():
            told[name].append(run(python, name, str(folder), str(workers)))
    rates = {name: np.array([run["rate"] for run in runs]) for name, runs in told.items()}
    case = f"{workers} workers"
    rows = [measured(f"{name}, {case}", values.tolist(), "samples/s") for name, values in rates.items()]
    for name, runs in told.items():
        if "first" in runs[0]:
            rows.append(measured(f"{name}, {case}: time to first batch", [run["first"] for run in runs], "s"))
            rows.append(measured(f"{name}, {case}: memory (PSS)", [run["mib"] for run in runs], "MiB"))
    ours = rates["genre_dist"]
    share = measured(f"genre_dist over the decode limit, {case}", (ours / rates["decode limit"]).tolist(), "ratio")
    rows.append(with_goal(share, 0.95) if workers else share)
    peers = {name: values for name, values in rates.items() if name not in ("genre_dist", "decode limit")}
    best = max(peers, key=lambda name: float(np.median(peers[name])))
    lead = measured(f"genre_dist over the best peer ({best}), {case}", (ours / peers[best]).tolist(), "ratio")
    return [*rows, with_goal(lead, 2.0 if workers == 2 else 1.0)]


def resuming(folder: Path, pythons: dict[str, str], rounds: int, workers: int = 2) -> list[Row]:
    """Time to the first batch of a stream that goes on in the middle and at the end of an epoch, over a fresh one."""
    names = [name for name in ("genre_dist", "webdataset, these shards", *PACKED_BY) if name in pythons]
    cases = [(name, where) for name in names for where in ("fresh", "middle", "end")]
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for name, where in cases:
            told = run(pythons[name], name, str(folder), str(workers), "--resume", where)
            seconds[name, where].append(told["first"])
    rows = []
    for name in names:
        fresh = np.array(seconds[name, "fresh"])
        for where in ("middle", "end"):
            claim = f"{name}: first batch resumed at the {where} of an epoch over a fresh start"
            row = measured(claim, (np.array(seconds[name, where]) / fresh).tolist(), "ratio")
            if name == "genre_dist":
                row = Row(**vars(row) | {"goal": "<= 1.2", "holds": row.value <= 1.2})
            rows.append(row)
    return rows


def decoders(folder: Path, rounds: int) -> list[Row]:
    """Each decoder into a given buffer, by CPU time; interleaved."""
    posters = [sample["jpg"] for sample in itertools.islice(loader_data.samples(folder), 200)]
    out = np.empty((256, 256, 3), np.uint8)
    there = {name: make(import_module(name)) for name, make in DECODERS.items() if find_spec(name.partition(".")[0])}
    rates: dict[str, list[float]] = {name: [] for name in there}
    for _ in range(1 + rounds):
        for name, decode in there.items():
            began = time.thread_time()
            for poster in posters:
                decode(poster, out)
            rates[name].append(len(posters) / (time.thread_time() - began))
    return [measured(f"decoding by {name}, one core", values[1:], "images/s") for name, values in rates.items()]


def with_goal(row: Row, least: float) -> Row:
    return Row(**vars(row) | {"goal": f">= {least}", "holds": row.value >= least})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute: fewer films, no peers to install")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    cache = Path(tempfile.gettempdir(), "genre_dist-peers")
    parser.add_argument("--cache", type=Path, default=cache, help="where the peers' environments are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
