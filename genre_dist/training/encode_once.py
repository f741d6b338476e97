"""Frozen encoders encode every sample once; the heads train on the encodings.

The encodings are stored beside the run's folder, in `encodings/KEY`. KEY is a hash of everything that decides them, so
another network, other weights or other shards get another cache, and runs that differ only in their heads share one.
Each rank encodes its share of the shards. A shard is whole or absent; whole ones are not encoded again. One run encodes
at a time; other runs that need the same encodings wait for it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file, remove_leftovers
from genre_dist.config import TextConfig
from genre_dist.lock import BusyError, take
from genre_dist.models.classifier import GenreClassifier
from genre_dist.parallel.one_run import Held
from genre_dist.parallel.world import World
from genre_dist.progress import progress_bar
from genre_dist.sample_ids import member_key
from genre_dist.schema import TMDB
from genre_dist.storage import sha256_of
from genre_dist.stream import ring, tar
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.stream.index import RECORD, array_bytes, index_path, save_array
from genre_dist.stream.manifest import SPLITS, AnyShard, load_manifest, save_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.refs import SampleRefs
from genre_dist.stream.sample import ENCODING
from genre_dist.training.experiment import Experiment, open_split, open_stream
from genre_dist.training.ranks import say
from genre_dist.training.stopping import Stopped, StopRequest, heed_while_waiting
from genre_dist.validation import read_json

VERSION = 1
"""Part of the key; raise it when the same weights and images give other encodings."""


WINDOW = 32
"""So many micro-batches are filled by the length of their texts: 17,834 overviews in micro-batches of 32 are padded to
1.04 times their tokens, in stored order to 2.31 times."""


class _Report(TypedDict):
    """Written after a shard; later starts know by it that the shard is whole."""

    key: str
    shard: AnyShard


def with_encodings(experiment: Experiment, stop: StopRequest) -> Experiment:
    """The experiment on encodings instead of images and texts; unchanged where encodings are off or impossible.

    A message says which. Raises Stopped if asked to stop (whole shards stay), ValueError on all ranks if one cannot
    write.
    """
    config, world = experiment.config, experiment.world
    reason = config.why_not_encoded_once
    if any(not encoder.frozen for encoder in experiment.model.number_encoders.values()):
        reason = "the encoder of numbers is trained"
    if config.train.cache_encodings == "off" or reason is not None:
        if reason:
            say(world, f"every step computes the frozen encoders again: {reason}")
        return experiment
    key = world.broadcast(cache_key(experiment) if world.is_first else None)
    folder = Path(config.run.dir).parent / "encodings" / key
    with _held(folder, world, stop):
        total = _encode(experiment, folder, key, stop)
    encodings = load_manifest(folder)
    stream = open_stream(config, encodings, world.size, world.rank)
    say(world, f"the heads train on the frozen encoders' encodings in {folder} ({total:,} computed now)")
    return experiment._replace(encodings=encodings, stream=stream)


@contextmanager
def _held(folder: Path, world: World, stop: StopRequest) -> Iterator[None]:
    """Wait until no other run encodes in the folder and hold it on all ranks; leftovers of killed runs are removed.

    Raises Stopped if asked to stop meanwhile, ValueError on all ranks if the folder cannot be used.
    """
    held, busy = _try_to_hold(folder, world)
    if busy:
        print(f"{busy}: waiting for it", flush=True)
    while held is None:
        if world.any(stop.requested()):
            raise Stopped
        held, _ = _try_to_hold(folder, world)
    try:
        held.share(world)
        yield
    finally:
        held.release()


def _try_to_hold(folder: Path, world: World) -> tuple[Held | None, str]:
    """Hold the folder; None if another run does, with a description of that run on rank 0."""
    lock, busy, problem = None, "", ""
    if world.is_first:
        try:
            lock = take(folder)
            remove_leftovers(folder)
        except BusyError as error:
            busy = str(error).partition(", or by")[0]
        except OSError as error:
            problem = f"{folder}: encodings cannot be written: {error}"
    free, problem = world.broadcast((not busy, problem))
    if problem:
        raise ValueError(problem)
    return Held(folder, lock) if free else None, busy


def _encode(experiment: Experiment, folder: Path, key: str, stop: StopRequest) -> int:
    """Encode the missing shards, each rank its share; returns how many samples all ranks have encoded."""
    world, problem = experiment.world, None
    made, shards = 0, list[Any]()
    try:
        made, shards = _encode_share(experiment, folder, key, stop)
    except (OSError, ValueError) as error:  # the other ranks must not wait for this one
        problem = f"{folder}: encodings cannot be written: {error}"
    world.wait_for_all()
    stopped = world.any(stop.requested())
    if problem := next(filter(None, world.broadcast(world.gather(problem))), None):
        raise ValueError(problem)
    if stopped:
        raise Stopped
    gathered = world.gather((made, shards))
    if gathered is not None:
        _save(experiment, folder, key, {shard.file: shard for _, part in gathered for shard in part})
    return int(world.broadcast(sum(count for count, _ in gathered) if gathered is not None else None))


def cache_key(experiment: Experiment) -> str:
    """Hash of the encoders, their weights, their inputs and their precision."""
    config = experiment.config
    about = [
        VERSION,
        experiment.manifest.fingerprint,
        experiment.compute.precision,
        config.data.image_size,
        config.data.max_tokens,
        config.model.members(experiment.manifest.declared),
        _text_identity(config.model.text) if config.model.uses_text else None,
        asdict(replace(config.model.poster, weights="", frozen=True)) if config.model.uses_poster else None,
    ]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in experiment.model.state_dict().items():
        if not name.startswith(("heads.", "missing.")):  # neither decides an encoding, and both change in training
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _text_identity(text: TextConfig) -> dict[str, Any]:
    """The settings of a text encoder that decide its encodings; those that are newer count only where they are set."""
    settings = asdict(replace(text, weights=None, frozen=True, frozen_through=None))
    del settings["frozen_through"]
    return settings


def _encode_share(experiment: Experiment, folder: Path, key: str, stop: StopRequest) -> tuple[int, list[Any]]:
    """Encode this rank's missing shards; returns the number of samples encoded and all its shards."""
    world, manifest, config = experiment.world, experiment.manifest, experiment.config
    mine = manifest.packed.shards[world.rank :: world.size]
    samples = 0
    shards: list[Any] = []
    with progress_bar() as bar:
        members, any_of = config.model.members(manifest.declared), config.model.learns_missing
        task = bar.add_task("encoding", total=sum(manifest.count(shard, members, any_of) for shard in mine))
        for split in SPLITS:
            reader = open_split(config, manifest, split)
            sources = manifest.packed.shards_of(split)
            numbers = [number for number, shard in enumerate(sources) if shard in mine]
            reports: dict[int, Any] = {}
            for number in numbers:
                reports[number] = _finished(folder, sources[number], key)
                world.progress()
            pending = [number for number in numbers if reports[number] is None]
            batches = _batches(experiment, reader, pending, stop)
            for number in pending:
                if stop.requested():
                    batches.close()
                    return samples, shards
                try:
                    reports[number] = _write(experiment, reader, number, sources[number], batches, folder, key)
                except Stopped:
                    return samples, shards
                samples += reader.index.sizes[number]
                bar.advance(task, reader.index.sizes[number])
            batches.close()
            shards += [report for report in reports.values() if report is not None]
    return samples, shards


def _windows(reader: ShardReader, number: int, most: int) -> Iterator[list[NDArray[np.int64]]]:
    """The rows of a shard, `WINDOW` micro-batches of texts of like lengths at a time; remote ones in stored order."""
    size = reader.index.sizes[number]
    for first in range(0, size, WINDOW * most):
        rows = np.arange(first, min(first + WINDOW * most, size))
        if not reader.index.is_remote:  # there neighbours come in one request
            rows = rows[np.argsort(reader.lengths(Rows(np.full(len(rows), number), rows)), kind="stable")]
        yield [rows[start : start + most] for start in range(0, len(rows), most)]


def _batches(experiment: Experiment, reader: ShardReader, numbers: list[int], stop: StopRequest) -> Any:
    """The samples of some shards in the order of their windows, read ahead; no batch spans two shards."""
    most, data = experiment.compute.micro_batch, experiment.config.data

    def refs() -> Iterator[SampleRefs]:
        for number in numbers:
            for rows in chain.from_iterable(_windows(reader, number, most)):
                yield reader.refs(Rows(np.full(len(rows), number), rows))

    workers = data.workers if numbers else 0
    waiting = partial(heed_while_waiting, stop.requested, True)  # ranks do not communicate before all have finished
    return ring.batches(reader, refs(), samples=most, workers=workers, prefetch=data.prefetch, waiting=waiting)


def _write(
    experiment: Experiment,
    reader: ShardReader,
    number: int,
    source: Any,
    batches: Iterator[Batch],
    folder: Path,
    key: str,
) -> Any:
    """Encode one shard: tar, index, and last the report, which marks it whole. `source` is the packed shard's entry."""
    path, size = folder / source.file, reader.index.sizes[number]
    path.parent.mkdir(parents=True, exist_ok=True)
    _report_path(path).unlink(missing_ok=True)
    digest = hashlib.sha256()
    records: list[tuple[int, int, int, int, int]] = []
    offset = 0
    with atomic_file(path) as file:
        for window in _windows(reader, number, experiment.compute.micro_batch):
            encoded: dict[int, bytes] = {}
            for rows in window:
                encoded |= zip(rows.tolist(), _encoded(experiment, next(batches)), strict=True)
                experiment.world.progress()
            in_order = np.array(sorted(encoded))
            sources = reader.index.records(Rows(np.full(len(in_order), number), in_order))
            for row, (sample, _, _, length, has) in zip(in_order.tolist(), sources.tolist(), strict=True):
                data = encoded[row]
                records.append((sample, offset, len(data), length, has))
                offset += len(data)
                file.write(data)
                digest.update(data)
        file.write(tar.END)
        digest.update(tar.END)
    left_out = [(0, 0, 0, 0, 0)] * (source.samples - size)  # samples without the model's inputs keep their position
    index = np.array(records + left_out, RECORD)
    with atomic_file(index_path(path)) as file:
        save_array(index, file)
    counts = source.counted(index["has"])
    shard = replace(source, **counts, bytes=offset + len(tar.END), sha256=digest.hexdigest())
    with atomic_file(_report_path(path), "w") as file:
        json.dump({"key": key, "shard": asdict(shard)}, file)
    return shard


def _encoded(experiment: Experiment, batch: Batch) -> Iterator[bytes]:
    """Each sample of a batch as bytes of a tar of encodings."""
    declared = experiment.manifest.declared
    genres = experiment.manifest.label_ids
    inputs = to_device(batch, experiment.world.device, whole_pixels(experiment.config.data))
    model = experiment.strategy.model
    assert isinstance(model, GenreClassifier)
    with torch.inference_mode(), experiment.train_step.autocast():
        encodings = model.encode(inputs.fields).float().cpu().numpy()  # [n, E]
    faults = iter(batch.faults)
    ids = batch.ids.tolist() if declared == TMDB else batch.samples
    for sample, encoding, labels, weight in zip(ids, encodings, batch.labels, batch.weights, strict=True):
        chosen = [genres[position] for position in np.flatnonzero(labels)]
        yield encoded_sample(sample, chosen, encoding, None if weight else next(faults))


def encoded_sample(sample: int | str, labels: list[Any], encoding: NDArray[np.float32], fault: str | None) -> bytes:
    """The members of one sample as bytes of a tar: json, encoding.npy. encoding: float32 [E].

    A film has TMDB's ids of itself and of its genres, another sample its own id and the names of its labels.
    """
    is_film = isinstance(sample, int)
    about = {"tmdb_id": sample, "genre_ids": labels} if is_film else {"id": sample, "labels": labels}
    about |= {"fault": fault} if fault else {}
    key = sample if is_film else member_key(str(sample))
    parts = []
    for extension, data in (("json", json.dumps(about).encode()), (ENCODING, array_bytes(encoding))):
        parts += [tar.header(f"{key}.{extension}", len(data)), data, bytes(tar.padded(len(data)) - len(data))]
    return b"".join(parts)


def _report_path(path: Path) -> Path:
    return path.with_suffix(".report.json")


def _finished(folder: Path, source: Any, key: str) -> Any:
    """The encoded shard if it is whole, else None: a missing or damaged one is encoded again."""
    path = folder / source.file
    try:
        report = read_json(_Report, _report_path(path), "it is made again")
        shard = report["shard"]
        whole = report["key"] == key and index_path(path).is_file() and sha256_of(path) == shard.sha256
    except (OSError, ValueError):
        return None
    same = (shard.file, shard.split, shard.samples) == (source.file, source.split, source.samples)
    return shard if whole and same else None


def _save(experiment: Experiment, folder: Path, key: str, made: dict[str, Any]) -> None:
    """Save the manifest of the encodings, in the order of their source shards, unless it exists already."""
    manifest, size = experiment.manifest.packed, experiment.model.encoding_size
    encodings = replace(
        cast(Any, manifest),
        folder=folder,
        shards=tuple(made[shard.file] for shard in manifest.shards),
        encoding={"size": size, "key": key, "source": experiment.manifest.fingerprint},
    )
    with suppress(ValueError):
        if load_manifest(folder) == encodings:
            return
    save_manifest(encodings)
