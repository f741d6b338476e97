"""One loader, measured by itself: started by benchmarks/loader.py, with the interpreter the loader is installed for.

    python benchmarks/loader_contenders.py NAME FOLDER WORKERS [--resume fresh|middle|end]

Prints one line of JSON: samples per second after the first batch, seconds to the first batch (from making the loader),
and memory: the proportional set size of the process and all it started, after 4 and 8 more batches. Every loader gives
batches of 64 of the same samples: uint8 [64, 256, 256, 3] by simplejpeg, padded tokens, float32 labels [64, 19]. The
peers do not shuffle (this project does), and nothing touches the pixels afterwards.
"""

import argparse
import io
import itertools
import json
import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

BATCH, SIZE = 64, 256
GENRES = {
    genre: number
    for number, genre in enumerate(
        [28, 12, 16, 35, 80, 99, 18, 10751, 14, 36, 27, 10402, 9648, 10749, 878, 10770, 53, 10752, 37]
    )
}
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # picture, tokens, labels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=sorted(LOADERS))
    parser.add_argument("folder", type=Path, help="what benchmarks/loader.py prepared")
    parser.add_argument("workers", type=int)
    parser.add_argument("--resume", choices=["fresh", "middle", "end"])
    arguments = parser.parse_args()
    if arguments.name == "decode limit":
        told = decode_limit(arguments.folder, max(1, arguments.workers))
    elif arguments.resume:
        import_all(arguments.name)
        told = {"first": RESUMES[arguments.name](arguments.folder, arguments.workers, arguments.resume)}
    else:
        import_all(arguments.name)
        told = measure(lambda: LOADERS[arguments.name](arguments.folder, arguments.workers))
    print(json.dumps(told))


def import_all(name: str) -> None:
    """Imports are no part of the time to the first batch."""
    modules = {
        "genre_dist": ["genre_dist.stream"],
        "mosaicml-streaming": ["streaming"],
        "litdata": ["litdata"],
        "megatron-energon": ["megatron.energon"],
        "ImageFolder": ["torchvision.datasets"],
    }.get(name, ["torch", "webdataset"])
    for module in modules:
        import_module(module)


def measure(make: Callable[[], Iterable[Any]]) -> dict[str, float]:
    """One epoch."""
    began = time.perf_counter()
    iterator = iter(make())
    next(iterator)
    first = time.perf_counter() - began
    batches, memory, paused = 0, 0.0, 0.0
    began = time.perf_counter()
    for _ in iterator:
        batches += 1
        if batches in (4, 8):
            looked = time.perf_counter()
            memory = max(memory, set_size(os.getpid()))
            paused += time.perf_counter() - looked
    seconds = time.perf_counter() - began - paused
    return {"rate": batches * BATCH / seconds, "first": first, "mib": memory / 2**20}


def set_size(pid: int) -> int:
    """Proportional set size of a process and all it started, bytes."""
    try:
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has ended
        return 0
    own = next(int(line.split()[1]) for line in told.splitlines() if line.startswith("Pss:")) * 1024
    return own + sum(set_size(int(child)) for child in children)


# ---- what all share


def parts(jpeg: bytes, tokens: bytes, about: bytes) -> Parts:
    labels = np.zeros(len(GENRES), np.float32)
    labels[[GENRES[genre] for genre in json.loads(about)["genre_ids"]]] = 1
    return simplejpeg.decode_jpeg(jpeg, colorspace="RGB"), plain_tokens(tokens), labels


def plain_tokens(data: bytes) -> np.ndarray:
    """What np.load gives, without its 40 us for the header: that should be no part of the comparison."""
    head = data.index(b"\n", 10) + 1
    return np.frombuffer(data, np.int32, offset=head) if data[:4] == b"\x93NUM" else np.load(io.BytesIO(data))


def collated(samples: list[Parts]) -> tuple[Any, ...]:
    """A batch of tensors, made where the samples were read."""
    import torch

    images, texts, labels = zip(*samples, strict=True)
    lengths = np.array([len(text) for text in texts])
    tokens = np.zeros((len(texts), max(lengths)), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return tuple(torch.from_numpy(part) for part in (np.stack(images), tokens, lengths, np.stack(labels)))


# ---- the limit


def decode_limit(folder: Path, workers: int) -> dict[str, float]:
    """Processes that only decode, from the page cache into three batches each, in turn."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(workers), context.Queue()
    shards = sorted(folder.glob("shards/train-*.tar"))
    processes = [
        context.Process(target=_decode_share, args=(shards[n::workers], start, results)) for n in range(workers)
    ]
    for process in processes:
        process.start()
    told = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return {"rate": sum(images / seconds for images, seconds in told)}


def _decode_share(shards: list[Path], start: Any, results: Any) -> None:
    import tarfile

    posters = []
    for shard in shards:
        data = np.memmap(shard, np.uint8, "r")
        with tarfile.open(shard) as tar:
            posters += [data[m.offset_data : m.offset_data + m.size] for m in tar if m.name.endswith(".jpg")]
    # 16 bytes beside a page: at addresses that 32 divides decoding is slower (stream/slots.py), and chance would decide
    memory = mmap.mmap(-1, 16 + 3 * BATCH * SIZE * SIZE * 3)
    batches = np.frombuffer(memory, np.uint8, offset=16).reshape(3 * BATCH, SIZE, SIZE, 3)
    batches[:] = 1
    for poster in posters:  # into the page cache and this process's tables
        poster[::4096].max()
    start.wait()
    began = time.perf_counter()
    for poster, place in zip(posters, itertools.cycle(batches), strict=False):
        simplejpeg.decode_jpeg(poster, colorspace="RGB", buffer=place)
    results.put((len(posters), time.perf_counter() - began))


# ---- this project


def genre_dist(folder: Path, workers: int) -> Iterator[Any]:
    stream = _stream(folder, workers)
    yield from itertools.chain.from_iterable(stream)
    stream.close()


def _stream(folder: Path, workers: int) -> Any:
    from genre_dist.stream import ShardReader, TrainStream, load_manifest

    reader = ShardReader(load_manifest(folder / "shards"), "train", ("poster", "overview"), 256)
    return TrainStream(reader, global_batch=BATCH, micro_batch=BATCH, seed=0, last_batch="drop", workers=workers)


def genre_dist_resume(folder: Path, workers: int, where: str) -> float:
    began = time.perf_counter()
    stream = _stream(folder, workers)
    position = {"fresh": 0, "middle": len(stream) // 2, "end": len(stream) - 1}[where]
    stream.load_state_dict(stream.state_dict() | {"position": position})
    next(iter(stream))
    seconds = time.perf_counter() - began
    stream.close()
    return seconds


# ---- the others


def webdataset(folder: Path, workers: int) -> Iterable[Any]:
    return _webdataset(sorted(folder.glob("shards/train-*.tar")), workers)


def webdataset_own(folder: Path, workers: int) -> Iterable[Any]:
    return _webdataset(sorted(folder.glob("webdataset/*.tar")), workers)


def _webdataset(shards: list[Path], workers: int) -> Iterable[Any]:
    import torch
    import webdataset

    def decoded(sample: dict[str, bytes]) -> Parts:
        return parts(sample["jpg"], sample["tokens.npy"], sample["json"])

    data = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False).map(decoded)
    data = data.batched(BATCH, collation_fn=collated, partial=False)
    return torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)


def webdataset_resume(folder: Path, workers: int, where: str) -> float:
    """It has no state: what was seen is read again and dropped."""
    began = time.perf_counter()
    loader = webdataset(folder, workers)
    batches = len(list((folder / "posters").rglob("*.jpg"))) // BATCH
    skip = {"fresh": 0, "middle": batches // 2, "end": batches - workers - 1}[where]
    next(itertools.islice(loader, skip, None))
    return time.perf_counter() - began


def mosaicml_streaming(folder: Path, workers: int) -> Iterable[Any]:
    return _mosaicml(folder, workers)


def _mosaicml(folder: Path, workers: int) -> Any:
    from streaming import StreamingDataLoader, StreamingDataset

    class Films(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return parts(sample["jpg"], sample["tokens"], sample["json"])

    data = Films(local=str(folder / "mds"), batch_size=BATCH, shuffle=False)
    return StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, collate_fn=collated, drop_last=True)


def mosaicml_resume(folder: Path, workers: int, where: str) -> float:
    from streaming.base.util import clean_stale_shared_memory

    loader = _mosaicml(folder, workers)
    samples = len(loader.dataset)
    if where != "fresh":
        position = samples // 2 if where == "middle" else samples - BATCH
        next(iter(loader))
        state = loader.state_dict() | {"sample_in_epoch": position // BATCH * BATCH}
        del loader
        clean_stale_shared_memory()
    began = time.perf_counter()
    loader = _mosaicml(folder, workers)
    if where != "fresh":
        loader.load_state_dict(state)
    next(iter(loader))
    return time.perf_counter() - began


def litdata(folder: Path, workers: int) -> Iterable[Any]:
    return _litdata(folder, workers)


def _litdata(folder: Path, workers: int) -> Any:
    from litdata import StreamingDataLoader, StreamingDataset

    class Films(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return parts(sample["jpg"], sample["tokens"], sample["json"])

    data = Films(str(folder / "litdata"), shuffle=False, drop_last=True)
    return StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, collate_fn=collated, drop_last=True)


def litdata_resume(folder: Path, workers: int, where: str) -> float:
    loader = _litdata(folder, workers)
    if where != "fresh":
        steps = len(loader) // 2 if where == "middle" else len(loader) - 1
        for _ in itertools.islice(loader, steps):
            pass
        state = loader.state_dict()
    began = time.perf_counter()
    loader = _litdata(folder, workers)
    if where != "fresh":
        loader.load_state_dict(state)
    next(iter(loader))
    return time.perf_counter() - began


def energon(folder: Path, workers: int) -> Iterable[Any]:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
        stateless,
    )

    @stateless
    def cooked(sample: dict[str, Any]) -> Any:
        return parts(sample["jpg"], sample["tokens.npy"], sample["json"])

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None  # raw bytes: the decoding is that of all the others
        cookers = [Cooker(cooked)]  # noqa: RUF012

        def batch(self, samples: list[Any]) -> Any:
            return collated(samples)

    config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
    data = get_train_dataset(
        str(folder / "energon"),
        batch_size=BATCH,
        batch_drop_last=True,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=config,
        task_encoder=Encoder(),
        repeat=False,
    )
    return get_loader(data)


def imagefolder(folder: Path, workers: int) -> Iterable[Any]:
    """Pictures only, in folders of classes: no texts and labels, which favours it a little."""
    import torch
    from torchvision.datasets import ImageFolder

    def load(path: str) -> np.ndarray:
        return simplejpeg.decode_jpeg(Path(path).read_bytes(), colorspace="RGB")

    def stacked(samples: list[tuple[np.ndarray, int]]) -> tuple[Any, ...]:
        images, classes = zip(*samples, strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(classes)

    data = ImageFolder(str(folder / "posters"), loader=load)
    return torch.utils.data.DataLoader(data, BATCH, num_workers=workers, collate_fn=stacked, drop_last=True)


LOADERS: dict[str, Callable[[Path, int], Iterable[Any]]] = {
    "decode limit": lambda folder, workers: (),
    "genre_dist": genre_dist,
    "webdataset, these shards": webdataset,
    "webdataset, its own shards": webdataset_own,
    "mosaicml-streaming": mosaicml_streaming,
    "litdata": litdata,
    "megatron-energon": energon,
    "ImageFolder": imagefolder,
}
RESUMES: dict[str, Callable[[Path, int, str], float]] = {
    "genre_dist": genre_dist_resume,
    "webdataset, these shards": webdataset_resume,
    "mosaicml-streaming": mosaicml_resume,
    "litdata": litdata_resume,
}

if __name__ == "__main__":
    main()
