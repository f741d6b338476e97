"""How near the loader comes to the speed of JPEG decoding itself, and how webdataset does on the same shards.

    python benchmarks/loader.py [--quick]

Everything runs alternately in one process on the same images, decoded by the same decoder to the same uint8 arrays,
with the same number of worker processes. The limit is decoding in place from the page cache and nothing else.
"""

import json
import multiprocessing
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from common import Row, measured, options, report

from genre_dist.acquire.sample import make_sample
from genre_dist.genres import INDEX_OF_ID
from genre_dist.prepare.pack import pack
from genre_dist.stream import ring
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.order import EpochOrder
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.sample import load_tokens, pad

BATCH, SIZE = 64, 256


def main() -> None:
    arguments = options(__doc__ or "")
    films, rounds = (1000, 2) if arguments.quick else (4000, 5)
    with tempfile.TemporaryDirectory() as folder:
        make_sample(films, 0, Path(folder, "catalogue"), (342, 513))
        manifest = pack(Path(folder, "catalogue"), Path(folder, "shards"), size=SIZE, shard_size=250, workers=2)
        own = write_with_webdataset(manifest, Path(folder, "own"))
        rows = []
        for workers in (0, 1, 2):
            rows += compare(workers, rounds, loaders(manifest, own))
    report(rows, arguments.json)


Loader = Callable[[int], float]
"""workers -> samples per second over an epoch, the start of the workers left out."""


def loaders(manifest: Manifest, own: list[str]) -> dict[str, Loader]:
    shards = [str(manifest.folder / shard.file) for shard in manifest.shards_of("train")]
    return {
        "decode limit": lambda workers: decode_limit(shards, max(1, workers)),
        "genre_dist": lambda workers: this_project(manifest, workers),
        "webdataset, these shards": lambda workers: stock_webdataset(shards, workers),
        "webdataset, its own shards": lambda workers: stock_webdataset(own, workers),
    }


def compare(workers: int, rounds: int, contenders: dict[str, Loader]) -> list[Row]:
    """Each in turn, round after round; rates, and ratios within each round."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            rates[name].append(run(workers))
    rows = [measured(f"{name}, {workers} workers", values, "samples/s") for name, values in rates.items()]
    ours = np.array(rates["genre_dist"])
    share = measured(f"genre_dist over the decode limit, {workers} workers", ours / rates["decode limit"], "ratio")
    peers = [values for name, values in rates.items() if name.startswith("webdataset")]
    lead = measured(f"genre_dist over the better webdataset, {workers} workers", ours / np.max(peers, axis=0), "ratio")
    rows.append(with_goal(share, 0.95) if workers else share)
    rows.append(with_goal(lead, 2.0 if workers == 2 else 1.0))
    return rows


def with_goal(row: Row, least: float) -> Row:
    return Row(**vars(row) | {"goal": f">= {least}", "holds": row.value >= least})


def this_project(manifest: Manifest, workers: int) -> float:
    reader = ShardReader(manifest, "train", ("poster", "overview"), 256)
    order = EpochOrder(reader.index.sizes, BATCH, 0, 0)
    places = [order.rows(step) for step in range(order.steps)]
    return rate(ring.batches(reader, places, samples=BATCH, workers=workers), lambda batch: len(batch.ids))


def stock_webdataset(urls: list[str], workers: int) -> float:
    def decoded(sample: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = np.zeros(len(INDEX_OF_ID), np.float32)
        labels[[INDEX_OF_ID[genre] for genre in json.loads(sample["json"])["genre_ids"]]] = 1
        image = simplejpeg.decode_jpeg(sample["jpg"], colorspace="RGB")
        return image, load_tokens(sample["tokens.npy"], 1 << 30), labels

    def collated(samples: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, ...]:
        images, texts, labels = zip(*samples, strict=True)
        return tuple(torch.from_numpy(part) for part in (np.stack(images), *pad(texts), np.stack(labels)))

    data = webdataset.WebDataset(urls, shardshuffle=False).map(decoded).batched(BATCH, collation_fn=collated)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)
    return rate(iter(loader), lambda batch: len(batch[0]))


def rate(batches: object, size: Callable[[object], int]) -> float:
    """Samples per second after the first batch, which waits for the workers to start."""
    iterator = iter(batches)  # type: ignore[call-overload]
    next(iterator)
    began, samples = time.perf_counter(), 0
    for batch in iterator:
        samples += size(batch)
    return samples / (time.perf_counter() - began)


def decode_limit(shards: list[str], workers: int) -> float:
    """Images per second of `workers` processes that only decode, each its share, into one buffer."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_decode_share, args=(shards[number::workers], start, results))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    told = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return sum(images / seconds for images, seconds in told)


def _decode_share(shards: list[str], start: object, results: object) -> None:
    posters = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            posters += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # type: ignore[union-attr]
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    simplejpeg.decode_jpeg(posters[0], buffer=out)
    start.wait()  # type: ignore[attr-defined]
    began = time.perf_counter()
    for poster in posters:
        simplejpeg.decode_jpeg(poster, colorspace="RGB", buffer=out)
    results.put((len(posters), time.perf_counter() - began))  # type: ignore[attr-defined]


def write_with_webdataset(manifest: Manifest, folder: Path) -> list[str]:
    """The same samples written by webdataset's own writer (a PAX header for every member)."""
    folder.mkdir()
    paths = []
    for shard in manifest.shards_of("train"):
        path = str(folder / shard.file)
        with webdataset.TarWriter(path) as writer:
            for sample in webdataset.WebDataset(str(manifest.folder / shard.file), shardshuffle=False):
                writer.write(
                    {key: value for key, value in sample.items() if not key.startswith("__") or key == "__key__"}
                )
        paths.append(path)
    return paths


if __name__ == "__main__":
    main()
