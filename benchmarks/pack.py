"""How near packing comes to the bare work on its images, on one core and two.

    python benchmarks/pack.py [--quick]

The bare limit is one loop over posters in memory: decode, resize, encode, with the calls that packing uses; no files,
no tar, no pool. Both run alternately. Packing reads a poster file a film, and writes tar, index and report with fsync;
the start of its workers and the two passes over the rows are left out. In the full form img2dataset takes its turn on
the same files, at equal size and quality (it crops to the square where we squash), in an environment of its own. A
busy machine shows in the bare limit on two processes: where that is not near twice the one on one, compare packing with
it and not with itself.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import peers
import simplejpeg
from common import Row, measured, options, report

from genre_dist.catalogue.catalogue import CatalogueWriter, poster_file, read_rows
from genre_dist.catalogue.sample_films import make_sample
from genre_dist.packing.pack import pack
from genre_dist.packing.posters import HALVE_FROM, load_rgb, square
from genre_dist.stream.manifest import Manifest

SIZE, QUALITY = 256, 90
PEER, REQUIREMENT = "img2dataset", "img2dataset==1.47.0"
POSTERS = ((342, 513), (500, 750))
SEEDS = 50  # films that are drawn; larger catalogues repeat them
ALL_OF_TMDB, FILMS_PER_PAGE, REQUESTS_A_SECOND = 1_100_000, 20, 40
NODES = ((1, 2), (1, 16), (1, 32), (16, 16))


def main() -> None:
    arguments = options(__doc__ or "")
    films, shard_size, rounds = (500, 100, 1) if arguments.quick else (4000, 250, 3)
    rows: list[Row] = []
    peer = None if arguments.quick else peers.environment(PEER, REQUIREMENT, peers.cache())
    if isinstance(peer, str):
        print(f"{PEER} is left out: {peer}", file=sys.stderr)
        peer = None
    with tempfile.TemporaryDirectory() as folder:
        for width, height in POSTERS:
            catalogue = repeated(Path(folder, f"{width}"), films, (width, height))
            rows += speed(catalogue, Path(folder, "shards"), shard_size, rounds, f"{width}x{height}", peer)
        rows += computed(rows)
        rows.append(half_decoding(Path(folder, "large")))
    report(rows, arguments.json)


def repeated(folder: Path, films: int, size: tuple[int, int]) -> Path:
    """A catalogue of any number of films; posters are hard links to those of a small sample."""
    make_sample(SEEDS, 0, folder / "drawn", size)
    drawn = [row for row in read_rows(folder / "drawn") if row["poster_status"] == "ok" and row["overview"]]
    catalogue = folder / "catalogue"
    with CatalogueWriter(catalogue) as writer:
        for number in range(films):
            row = drawn[number % len(drawn)]
            poster = poster_file(catalogue, number + 1)
            poster.parent.mkdir(parents=True, exist_ok=True)
            os.link(poster_file(folder / "drawn", row["tmdb_id"]), poster)
            writer.add(row | {"tmdb_id": number + 1})
    return catalogue


def speed(catalogue: Path, out: Path, shard_size: int, rounds: int, name: str, peer: Path | None) -> list[Row]:
    """Packing, the bare limit and the peer in turn, on one process and on two."""
    posters = [path.read_bytes() for path in sorted((catalogue.parent / "drawn" / "posters").rglob("*.jpg"))]
    contenders = ("bare limit", "pack", *([PEER] if peer else []))
    rates: dict[tuple[str, int], list[float]] = {(what, n): [] for n in (1, 2) for what in contenders}
    for _ in range(rounds):
        for workers in (1, 2):
            rates["bare limit", workers].append(bare_limit(posters, workers))
            rates["pack", workers].append(packing(catalogue, out, shard_size, workers))
            if peer:
                rates[PEER, workers].append(peers_packing(peer, catalogue, shard_size, workers))
    rows = [measured(f"{what}, {name}, {n} workers", values, "images/s") for (what, n), values in rates.items()]
    for workers in (1, 2):
        share = np.array(rates["pack", workers]) / rates["bare limit", workers]
        rows.append(with_goal(measured(f"pack over the bare limit, {name}, {workers} workers", share, "ratio"), 0.9))
        if peer:
            ahead = np.array(rates["pack", workers]) / rates[PEER, workers]
            rows.append(with_goal(measured(f"pack over {PEER}, {name}, {workers} workers", ahead, "ratio"), 1))
    twice = np.array(rates["pack", 2]) / rates["pack", 1]
    rows.append(with_goal(measured(f"pack on 2 cores over 1, {name}", twice, "ratio"), 1.8))
    return rows


def with_goal(row: Row, least: float) -> Row:
    return Row(**vars(row) | {"goal": f">= {least}", "holds": row.value >= least})


def packing(catalogue: Path, out: Path, shard_size: int, workers: int) -> float:
    """Films per second: how steeply the films in finished shards grow over the times of the shards' reports."""
    manifest = pack(catalogue, out, size=SIZE, quality=QUALITY, shard_size=shard_size, workers=workers, overwrite=True)
    ends = sorted((finished_at(manifest, shard.file), shard.samples) for shard in manifest.shards)
    seconds = np.array([end for end, _ in ends]) - ends[0][0]
    return float(np.polyfit(seconds, np.cumsum([samples for _, samples in ends]), 1)[0])


def peers_packing(python: Path, catalogue: Path, shard_size: int, workers: int) -> float:
    """The peer's images per second on the same posters, half as many of them: it is slower."""
    films = sum(1 for _ in read_rows(catalogue)) // 2
    script = Path(__file__).with_name("pack_img2dataset.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), str(script), str(catalogue.parent / "drawn" / "posters"), f"{folder}/out"]
        for name, value in (("films", films), ("shard_size", shard_size), ("size", SIZE), ("quality", QUALITY)):
            command += [f"--{name}", str(value)]
        command += ["--processes", str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return float(done.stdout.splitlines()[-1])


def finished_at(manifest: Manifest, shard: str) -> float:
    return (manifest.folder / shard).with_suffix(".report.json").stat().st_mtime_ns / 1e9


def bare_limit(posters: list[bytes], workers: int) -> float:
    """Images per second of processes that do nothing but the images."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=_bare_loop, args=(posters, start, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    rates = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def _bare_loop(posters: list[bytes], start: object, results: object, seconds: float = 1.5) -> None:
    cv2.setNumThreads(0)
    images = 0
    start.wait()  # type: ignore[attr-defined]
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        pixels = simplejpeg.decode_jpeg(posters[images % len(posters)], colorspace="RGB")
        small = cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        simplejpeg.encode_jpeg(small, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
        images += 1
    results.put(images / (time.perf_counter() - began))  # type: ignore[attr-defined]


def computed(rows: list[Row]) -> list[Row]:
    """Hours to fetch and pack all of TMDB, from the rate per core on two.

    Assumed: every film has a poster of 342x513, one request a poster and one for 20 films, the limit of 40 requests a
    second kept and reached (it holds for all nodes together, so only packing is shared), every core as fast as two
    measured together, and disks that keep up.
    """
    rate = next(row.value for row in rows if row.claim == "pack, 342x513, 2 workers") / 2
    fetching = ALL_OF_TMDB * (1 + 1 / FILMS_PER_PAGE) / REQUESTS_A_SECOND / 3600
    told = f"fetching {fetching:.2f} h at {REQUESTS_A_SECOND} requests/s, then {rate:.0f} images/s a core"
    return [
        Row(
            claim=f"computed: fetching and packing {ALL_OF_TMDB:,} films, {nodes} nodes of {cores} cores",
            value=fetching + ALL_OF_TMDB / (rate * cores * nodes) / 3600,
            unit="hours",
            spread=told,
        )
        for nodes, cores in NODES
    ]


def half_decoding(folder: Path) -> Row:
    """What decoding at half the size changes in posters just large enough for it."""
    make_sample(20, 0, folder, (HALVE_FROM * 100, HALVE_FROM * 150))
    values = []
    for path in sorted((folder / "posters").rglob("*.jpg")):
        data = path.read_bytes()
        full, half = load_rgb(data)[0], load_rgb(data, least=HALVE_FROM * 100)[0]
        assert len(full) == 2 * len(half), "not halved"
        error = square(full, 100, "squash").astype(float) - square(half, 100, "squash")
        values.append(float(10 * np.log10(255**2 / np.mean(error**2))))
    row = measured(f"half-size decoding against full, posters {HALVE_FROM} times the target (PSNR)", values, "dB")
    return with_goal(row, 40)


if __name__ == "__main__":
    main()
