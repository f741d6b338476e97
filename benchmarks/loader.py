"""How near the loader comes to the speed of JPEG decoding itself, and how the field's loaders do on the same films.

    python benchmarks/loader.py [--quick] [--json FILE] [--cache FOLDER] [--minutes M]

Each measurement is a process of its own (loader_contenders.py); one of each in turn, round after round (the limit and
this project three times a round), on the same images, decoded by the same decoder to the same arrays, with the same
number of workers. The limit is decoding into the places of batches from the page cache and nothing else. The peers are
installed into environments under --cache, once; one that cannot be had is left out with the reason. --quick has one
round, no peers but webdataset and ImageFolder, and resumes only this project's.

There are as many rounds as fit into --minutes, up to five. FILE has after every round the rows that are known by then,
and a run that is stopped prints them.

With it, alone or in the full run: memory and planning (loader_scale.py), quality of shuffling (shuffle.py).
"""

import argparse
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import loader_data
import loader_scale
import numpy as np
import peers
import shuffle
from common import Row, measured, report, write

from genre_dist.catalogue.sample_films import make_sample
from genre_dist.packing.pack import pack
from genre_dist.stream.decode import DECODERS

CONTENDERS = Path(__file__).with_name("loader_contenders.py")
PACKED_BY = {"mosaicml-streaming": "mds", "litdata": "litdata"}
SHARES = {2: 0.3, 1: 0.2, 0: 0.2}  # workers -> share of the time
RESUMING = 0.12
PAIR, TURNS = ("decode limit", "genre_dist"), 3
"""These take a second and a half and the host's speed changes faster than that: they take turns in every round."""
Rates = dict[str, list[dict[str, float]]]
Rounds = Callable[[float], Iterator[int]]
"""Numbers of rounds, as many as fit into a share of the time."""


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _options()
    made: list[Row] = []
    try:
        for rows in _rows(arguments):
            made = rows
            if arguments.json:
                write(made, arguments.json)
    except KeyboardInterrupt:
        say("stopped; what is known so far:")
    report(made, arguments.json)


def _rows(arguments: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows known so far, again and again."""
    quick, done = arguments.quick, []
    rounds = partial(_rounds, 1 if quick else 5, 60 * arguments.minutes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("drawing and packing films")
        make_sample(600 if quick else 3000, 0, folder / "catalogue", (342, 513))
        pack(folder / "catalogue", folder / "shards", size=256, shard_size=250, workers=2)
        pythons = interpreters(folder, quick, arguments.cache)
        done += decoders(folder, 2 if quick else 5)
        for workers in (2, 0) if quick else (2, 1, 0):
            now: list[Row] = []
            for now in compare(folder, pythons, workers, rounds):
                yield done + now
            done += now
        for now in resuming(folder, {"genre_dist": sys.executable} if quick else pythons, rounds):
            yield done + now
        done += now
    say("memory and planning")
    for row in loader_scale.rows(quick):
        done.append(row)
        yield done
    yield done + shuffle.rows(quick)


def _rounds(most: int, seconds: float, share: float) -> Iterator[int]:
    """Numbers of rounds: the first, and others while there is time for one more."""
    began = time.monotonic()
    for number in range(most):
        if number and (time.monotonic() - began) * (number + 1) / number > share * seconds:
            return
        yield number


def say(what: str) -> None:
    """Progress, on stderr."""
    print(f"[{time.monotonic() - BEGAN:4.0f} s] {what}", file=sys.stderr, flush=True)


BEGAN = time.monotonic()


def interpreters(folder: Path, quick: bool, cache: Path) -> dict[str, str]:
    """The contenders that can be had, each with its interpreter; their formats are written."""
    pythons = dict.fromkeys(("decode limit", "genre_dist", "webdataset, these shards", "ImageFolder"), sys.executable)
    loader_data.write_imagefolder(folder)
    if quick:
        return pythons
    loader_data.write_webdataset(folder)
    pythons["webdataset, its own shards"] = sys.executable
    for peer in loader_data.PEERS:
        say(f"preparing {peer}")
        python = peers.environment(peer, loader_data.PEERS[peer], cache)
        if isinstance(python, str):
            say(f"{peer} is left out: {python}")
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
            say(f"{peer} is left out, its format could not be written: {said[-1]}")
            continue
        pythons[peer] = str(python)
    return pythons


def run(pythons: dict[str, str], name: str, *arguments: str) -> dict[str, float] | None:
    """One contender, once. A peer that fails is left out from then on; None."""
    command = [pythons[name], str(CONTENDERS), name, *arguments]
    # workers of loaders that start afresh import what the first run has compiled, as they do everywhere else
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    try:
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=200, env=environment)
    except subprocess.SubprocessError as error:
        if name in PAIR:
            raise
        say(f"{name} is left out: {error}")
        del pythons[name]
        return None
    told: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return told


def compare(folder: Path, pythons: dict[str, str], workers: int, rounds: Rounds) -> Iterator[list[Row]]:
    """Rates, time to the first batch and memory of all, and ratios within each round; after every round."""
    told: Rates = {name: [] for name in pythons}
    for number in rounds(SHARES[workers]):
        peers = [name for name in pythons if name not in PAIR]
        for name in (*PAIR * TURNS, *peers):
            if found := run(pythons, name, str(folder), str(workers)):
                told[name].append(found)
                say(f"{workers} workers, round {number + 1}: {name} {found['rate']:,.0f} samples/s")
        yield _compared({name: told[name] for name in pythons}, workers)


def _compared(told: Rates, workers: int) -> list[Row]:
    rates = {name: np.array([run["rate"] for run in runs]) for name, runs in told.items()}
    case = f"{workers} workers"
    rows = [measured(f"{name}, {case}", values.tolist(), "samples/s") for name, values in rates.items()]
    for name, runs in told.items():
        if "first" in runs[0]:
            rows.append(measured(f"{name}, {case}: time to first batch", [run["first"] for run in runs], "s"))
            rows.append(measured(f"{name}, {case}: memory (PSS)", [run["mib"] for run in runs], "MiB"))
    ours, limit = rates["genre_dist"], rates["decode limit"]
    share = measured(f"genre_dist over the decode limit, {case}", (ours / limit).tolist(), "ratio")
    rows.append(with_goal(share, 0.95) if workers else share)
    peers = {name: values for name, values in rates.items() if name not in PAIR}
    best = max(peers, key=lambda name: float(np.median(peers[name])))
    of_round = np.median(ours.reshape(-1, TURNS), axis=1)
    lead = measured(f"genre_dist over the best peer ({best}), {case}", (of_round / peers[best]).tolist(), "ratio")
    return [*rows, with_goal(lead, 2.0 if workers == 2 else 1.0)]


def resuming(folder: Path, pythons: dict[str, str], rounds: Rounds, workers: int = 2) -> Iterator[list[Row]]:
    """Time to the first batch of a stream that goes on in the middle and at the end of an epoch, over a fresh one."""
    names = ("genre_dist", "webdataset, these shards", *PACKED_BY)
    cases = list(itertools.product(names, ("fresh", "middle", "end")))
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for number in rounds(RESUMING):
        for name, where in cases:
            if name in pythons and (told := run(pythons, name, str(folder), str(workers), "--resume", where)):
                seconds[name, where].append(told["first"])
                say(f"round {number + 1}: {name}, {where}, first batch after {told['first']:.2f} s")
        yield _resumed([name for name in names if name in pythons], seconds)


def _resumed(names: list[str], seconds: dict[tuple[str, str], list[float]]) -> list[Row]:
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
    out = np.frombuffer(mmap.mmap(-1, 16 + 256 * 256 * 3), np.uint8, offset=16).reshape(256, 256, 3)  # as slots lie
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
    parser.add_argument("--json", type=Path, help="write the rows here as well, after every round")
    parser.add_argument("--minutes", type=float, default=8, help="about how long it may take on two cores")
    parser.add_argument("--cache", type=Path, default=peers.cache(), help="where the peers' environments are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
