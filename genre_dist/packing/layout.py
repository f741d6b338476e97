"""Samples to pack, the shard of each, and a file of JSON lines for each shard: the input of a packing worker.

Memory holds a number or two for each sample, never its row.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.packing.catalogue_rows import Row, number_in, rows_of
from genre_dist.packing.moments import RunningMoments
from genre_dist.packing.recipe import Recipe
from genre_dist.packing.shard import Job, ids_of
from genre_dist.packing.shard_report import read_report, report_kind, shortened
from genre_dist.packing.vocabulary import forget_rare, tokenise
from genre_dist.schema import TMDB, Schema
from genre_dist.splits import order_key, split_of
from genre_dist.storage import AnyPath, exists
from genre_dist.stream.manifest import FILE, SPLITS, Moments, Text, load_manifest


class ExistingShards(NamedTuple):
    """Shards and samples of a finished folder. These samples stay in their shards; only others are packed."""

    reports: list[Any]
    """Reports of the manifest's complete shards, in the manifest's order, shortened."""
    ids: NDArray[np.int64]  # [samples] ascending; samples whose image could not be read are among them
    text: Text | None
    """The manifest's `text`; None if no shard is complete."""
    moments: Mapping[str, Moments] = {}
    """The manifest's `numbers`."""


NO_SHARDS = ExistingShards([], np.empty(0, np.int64), None)


class Chosen(NamedTuple):
    """The shard of each sample, and the counts taken while the catalogue was read."""

    ids: NDArray[np.int64]  # [samples] ascending, without samples that are packed already
    shard: NDArray[np.int32]  # [samples] number of each sample's shard
    shards: list[tuple[str, str]]
    """(file, split) of each shard."""
    counts: Counter[str]
    """Word -> occurrences in the train split; empty if the folder has a vocabulary already, or for a tokenizer."""
    left_out: Counter[str]
    moments: Mapping[str, Moments]
    """Field of numbers -> their mean and spread over the train split."""


def existing_shards(out: AnyPath, schema: Schema, recipe: Recipe) -> ExistingShards:
    """The shards of a folder with a manifest; a shard that lost a file counts as not packed, so that it is made again.

    Raises ValueError if the shards were packed with other options or fields, or if none is complete.
    """
    if not exists(out / FILE):
        return NO_SHARDS
    try:
        manifest = load_manifest(out)
        if (manifest.declared == TMDB) != (schema == TMDB):
            raise ValueError(f"{out / FILE}: of shards with other fields and labels than this catalogue declares")
    except ValueError as error:
        raise ValueError(f"{error} (--overwrite replaces what is there)") from None
    reports, ids = [], []
    for shard in manifest.shards:
        report = read_report(out / shard.file, report_kind(schema), damaged_is_none=True)
        packed = ids_of(out, shard)
        if report is None or packed is None or report.shard != shard:
            continue
        _refuse_other_options(out, report.recipe, recipe)
        ids += [packed, np.array(report.ids_left_out(), np.int64)]
        reports.append(shortened(report))
    if manifest.shards and not reports:
        raise ValueError(
            f"{out}: no shard of its manifest is whole (their reports or indexes are lost): bring them back, or pack "
            "all anew with --overwrite"
        )
    if not reports:
        return NO_SHARDS
    return ExistingShards(reports, np.unique(np.concatenate(ids)), manifest.text, manifest.numbers)


def _refuse_other_options(out: AnyPath, existing: Recipe, recipe: Recipe) -> None:
    """Raise ValueError if the recipes differ: one folder never mixes shards of two recipes."""
    there, wanted = asdict(existing), asdict(recipe)
    for name, value in wanted.items():
        if name != "vocabulary_sha256" and there[name] != value:
            old, new = (",".join(option) if isinstance(option, tuple) else option for option in (there[name], value))
            raise ValueError(
                f"{out} already holds shards packed with another --{name.removesuffix('_sha256')} ({old or 'none'} "
                f"there, {new or 'none'} here); pack into another folder, or pass --overwrite to replace them"
            )


def index_of(ids: NDArray[np.int64], id: int) -> int | None:
    """The index of an id in ascending ids, None if they lack it."""
    index = int(np.searchsorted(ids, id))
    return index if index < len(ids) and ids[index] == id else None


def choose(catalogue: AnyPath, schema: Schema, recipe: Recipe, existing: ExistingShards) -> Chosen:
    """Read the catalogue once: the samples to pack, the shard of each, words and moments of the train split.

    Raises ValueError for a sample with two rows, for a catalogue without a sample to pack, for an id that is too long
    for a tar, and for a catalogue that has less than half of the packed samples: it is another catalogue, not a later
    state of the same.
    """
    ids, keys, splits, what = array("q"), array("Q"), array("b"), schema.sample
    moments = {field.name: RunningMoments(len(field.columns)) for field in schema.fields if field.kind == "numbers"}
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    known = 0
    for row in rows_of(catalogue, schema, recipe):
        if index_of(existing.ids, row.id) is not None:
            known += 1
            continue
        if row.reason:
            left_out[row.reason] += 1
            continue
        split = split_of(row.split_id)
        ids.append(row.id)
        keys.append(order_key(row.id))
        splits.append(SPLITS.index(split))
        if split == "train" and not existing.reports:  # val and test would leak into training
            for name, running in moments.items():
                running.add(row.numbers[name])
            if not recipe.tokenizer_sha256:
                counts.update(tokenise(row.text))
                forget_rare(counts)
    if not existing.reports and not ids:
        reasons = ", ".join(f"{count:,} with {reason}" for reason, count in left_out.most_common())
        raise ValueError(
            f"{catalogue}: no {what} to pack ({reasons or 'it is empty'}); require less with --require, or import more"
        )
    if 2 * known < len(existing.ids):
        raise ValueError(
            f"{catalogue} knows {known:,} of the {len(existing.ids):,} {schema.samples} packed before: another "
            "catalogue? Pack it into another folder, or pass --overwrite to replace the shards"
        )
    taken = {report.shard.file for report in existing.reports}
    arrays = np.asarray(ids), np.asarray(keys), np.asarray(splits)
    sorted_ids, shard, shards = _assign(*arrays, recipe.shard_size, taken)
    twice = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
    if len(twice):
        raise ValueError(f"{catalogue}: the {what} {sorted_ids[twice[0]]} is there twice; make the catalogue again")
    found = existing.moments if existing.reports else {name: running.result() for name, running in moments.items()}
    return Chosen(sorted_ids, shard, shards, counts, left_out, found)


def _assign(
    ids: NDArray[np.int64], keys: NDArray[np.uint64], splits: NDArray[np.int8], shard_size: int, taken: set[str]
) -> tuple[NDArray[np.int64], NDArray[np.int32], list[tuple[str, str]]]:
    """Cut each split, in hash order, into shards with unused names; returns ascending ids, their shard, the shards."""
    shard = np.empty(len(ids), np.int32)
    shards: list[tuple[str, str]] = []
    for number, split in enumerate(SPLITS):
        own = np.flatnonzero(splits == number)
        own = own[np.argsort(keys[own])]
        shard[own] = len(shards) + np.arange(len(own)) // shard_size
        wanted, index = -(-len(own) // shard_size), 0
        while wanted:
            file = f"{split}-{index:06d}.tar"
            index += 1
            if file not in taken:
                shards.append((file, split))
                wanted -= 1
    order = np.argsort(ids)
    return ids[order], shard[order], shards


MAX_PENDING_BYTES = 2 << 20
"""Bytes of lines collected before they are appended: the limit bounds memory and saves opening a file per sample."""


def lay_out(
    rows: Iterable[Row], chosen: Chosen, work: Path, part: tuple[int, int], job: Callable[..., Job]
) -> list[Job]:
    """Write the samples of every shard, or of the shards number i mod n for (i, n), into a file each below `work`.

    `rows` is the catalogue, read once more, and `job` makes the Job of a shard: the result, in the order of the shards.
    """
    number, parts = part
    own = range(number % parts, len(chosen.shards), parts)
    pending: dict[int, list[bytes]] = {}
    size = 0
    for row in rows:
        index = index_of(chosen.ids, row.id)
        if index is None or (shard := int(chosen.shard[index])) not in own:
            continue
        line = json.dumps(row.line(), ensure_ascii=False).encode() + b"\n"
        pending.setdefault(shard, []).append(line)
        size += len(line)
        if size >= MAX_PENDING_BYTES:
            _append(pending, work)
            size = 0
    _append(pending, work)
    jobs = []
    for shard in own:
        file, split = chosen.shards[shard]
        path = _file(work, shard)
        jobs.append(job(file=file, split=split, lines=path, lines_sha256=_sort(path)))
    return jobs


def _file(work: Path, shard: int) -> Path:
    return work / f"{shard}.jsonl"


def _append(pending: dict[int, list[bytes]], work: Path) -> None:
    for shard, lines in pending.items():
        with open(_file(work, shard), "ab") as file:
            file.writelines(lines)
    pending.clear()


def _sort(path: Path) -> str:
    """Put a shard's samples into hash order; returns the SHA-256 of the file."""
    lines = path.read_bytes().splitlines(keepends=True)  # JSON escapes every line ending inside a text
    lines.sort(key=lambda line: order_key(number_in(json.loads(line))))
    data = b"".join(lines)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
