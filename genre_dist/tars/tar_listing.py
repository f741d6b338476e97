"""Listing anyone's tars with a schema, so that they can be trained on as they are: an index of each, and a manifest.

The tars stay unchanged. Each is read once, for labels, texts and numbers; a report beside its indexes marks it as done.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.catalogue.importing_samples import Known, SampleReport, notes, resolved
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.sample_rows import RowReader, images_of
from genre_dist.packing.moments import RunningMoments
from genre_dist.packing.pack import save_tokens, vectors_of_words
from genre_dist.packing.packing_manifest import VECTORS, text_entry, text_fields
from genre_dist.packing.posters import Fit
from genre_dist.packing.recipe import Recipe
from genre_dist.packing.tokenizer import BY_WORDS, TokenizerFile, WordTokenizer, read_tokenizer_file
from genre_dist.packing.vectors import matrix_for, require_vectors
from genre_dist.packing.vocabulary import choose_words, forget_rare, tokenise, words_sha256
from genre_dist.printable import printable
from genre_dist.progress import progress_bar
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import Schema
from genre_dist.sealed import read_sealed, write_sealed
from genre_dist.splits import DECLARED_RULE, split_of
from genre_dist.storage import AnyPath, inside, local_copy, remove
from genre_dist.stream.foreign import addresses, load_links, name_of_index, version_of_tar
from genre_dist.stream.index import RECORD, load_array, save_array
from genre_dist.stream.indexing import TarIndex, read_index
from genre_dist.stream.manifest import FILE as MANIFEST
from genre_dist.stream.manifest import SPLITS, TarManifest, Text, save_manifest
from genre_dist.stream.manifest_base import chosen_count
from genre_dist.stream.tar import mapped
from genre_dist.stream.tar_manifest import FOLDER, TarShard
from genre_dist.stream.tar_reader import links_of, members_at
from genre_dist.tars.tar_samples import FILE, IMAGES, TarRows, TarSample, extensions_of
from genre_dist.validation import Count
from genre_dist.workers import in_processes

FILE_RULE = "the word train, val, valid, validation or test in the name of the tar, or of its folder"
SPLIT_OF_WORD = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
VERSION = 1
"""Part of the key of reports; raise it when the same options give other indexes."""
MOST_COLUMNS = 200
"""Keys of JSON members that are remembered of a tar, to be named where the schema names others."""
MOST_NOTES = 20
Counts = Counter[str]


class TarOptions(NamedTuple):
    """What decides a listing."""

    reader: RowReader
    tokenizer: str = BY_WORDS
    """`words`, or what `read_tokenizer_file` finds."""
    size: int = 256
    fit: Fit = "squash"


class _Job(NamedTuple):
    path: AnyPath
    address: str
    out: AnyPath
    options: TarOptions
    tokenizer_sha256: str


@dataclass(kw_only=True)
class TarReport:
    """What is known of a listed tar."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    key: str
    """Hash of the options and of the tar's size and version."""
    content_sha256: str = ""
    """Of the ids, labels, texts and numbers of its samples."""
    shards: list[TarShard] = field(default_factory=list)
    labels: dict[str, Counts] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    """Split -> label -> samples."""
    unlabelled: Count = 0
    """Samples that are kept without a label."""
    words: Counts = field(default_factory=Counter)
    """Of the train split; none with a tokenizer."""
    moments: dict[str, list[list[float]]] = field(default_factory=dict)
    """Field of numbers -> `RunningMoments.sums` over the train split."""
    columns: Counts = field(default_factory=Counter)
    """Column -> samples that have it."""
    lost: Counts = field(default_factory=Counter)
    """Reason -> samples that are left out."""
    left_out: list[tuple[str, str, Count]] = field(default_factory=list)
    """Reason, example and count, see `LeftOut`."""
    notes: list[str] = field(default_factory=list)
    """Lines on the tar, see `TarIndex`."""


def list_samples(
    tars: Sequence[AnyPath], out: AnyPath, options: TarOptions, vectors: AnyPath | None = None, workers: int = 1
) -> tuple[TarManifest, SampleReport]:
    """List tars in `out` so that it can be trained on; unchanged tars that are listed with the same options are kept.

    Raises ValueError that names the tar and, if known, the sample: for what is no tar, for a cell that is not as the
    schema says, for an id that is there twice, for a column that no sample has.
    """
    Recipe(size=options.size, fit=options.fit)  # raises ValueError for impossible ones
    pieces = None if options.tokenizer == BY_WORDS else read_tokenizer_file(options.tokenizer)
    if vectors is not None:
        if pieces is not None:
            raise ValueError("--vectors has vectors of words, and this --tokenizer makes none: drop one of them")
        require_vectors(vectors)
    sha256 = "" if pieces is None else pieces.sha256
    jobs = [_Job(path, address, out, options, sha256) for path, address in zip(tars, addresses(tars, out), strict=True)]
    remove(out / MANIFEST)  # an older one must never describe other indexes
    reports, words = _list_all(jobs, workers)
    shards = sorted((shard for report in reports for shard in report.shards), key=lambda s: SPLITS.index(s.split))
    schema, left_out, moments = options.reader.schema, LeftOut(), _moments(options.reader.schema)
    labels = {split: sum((report.labels[split] for report in reports), Counter[str]()) for split in SPLITS}
    known = Known(
        samples=sum(shard.samples for shard in shards),
        unlabelled=sum(report.unlabelled for report in reports),
        labels=sum(labels.values(), Counter()),
    )
    for name in schema.by_name:
        known.having[name] = sum(chosen_count(shard.by_fields, schema.bit(name), False) for shard in shards)
    for job, report in zip(jobs, reports, strict=True):
        for reason, example, count in report.left_out:
            left_out.add(reason, f"{job.path}: {example}", count)
        for name, running in moments.items():
            running.merge(report.moments[name])
    columns = sum((report.columns for report in reports), Counter[str]())
    _check_columns(out, options.reader, columns)
    schema = resolved(schema, out, known)
    _check_ids(out, shards)
    manifest = TarManifest(
        folder=out,
        declared=schema,
        image={"size": options.size, "fit": options.fit, "quality": 100},
        text=_save_text(out, schema, words, pieces, vectors),
        numbers={name: running.result() for name, running in moments.items()},
        require=(),
        split_rule=FILE_RULE if schema.split_by == FILE else DECLARED_RULE.partition("; order")[0],
        label_counts={split: [counts[name] for name in schema.labels.classes] for split, counts in labels.items()},
        left_out=dict(sum((report.lost for report in reports), Counter())),
        shards=tuple(shards),
    )
    save_manifest(manifest)
    unused = [f".{name} of {columns[name]:,} samples" for name in IMAGES if columns[name] and not images_of(schema)]
    lines = [*notes(schema, known), *_lines(unused, jobs, reports)]
    return manifest, SampleReport(schema, known.samples, known.having, known.labels, known.unlabelled, lines, left_out)


def _list_all(jobs: list[_Job], workers: int) -> tuple[list[TarReport], Counter[str]]:
    """List every tar; the reports in the order of the jobs, and the words of the train split."""
    done: dict[str, TarReport] = {}
    words = Counter[str]()
    with progress_bar() as progress:
        task = progress.add_task("listing tars", total=len(jobs))
        for job, report in in_processes(_list_one, jobs, workers, "listing tars"):
            words.update(report.words)
            forget_rare(words)
            done[job.address] = replace(report, words=Counter())  # of all tars they would fill the memory
            progress.advance(task)
    return [done[job.address] for job in jobs], words


def _lines(unused: list[str], jobs: list[_Job], reports: list[TarReport]) -> list[str]:
    """Notes on images that no field takes and on each tar, up to MOST_NOTES."""
    odd = [f"note: no field takes {' and '.join(unused)}; --image does"] if unused else []
    odd += [f"note: {job.path}: {note}" for job, report in zip(jobs, reports, strict=True) for note in report.notes]
    more = [f"note: and {len(odd) - MOST_NOTES:,} more such notes"] if len(odd) > MOST_NOTES else []
    return odd[:MOST_NOTES] + more


def _moments(schema: Schema) -> dict[str, RunningMoments]:
    return {one.name: RunningMoments(len(one.columns)) for one in schema.fields if one.kind == "numbers"}


def _save_text(
    out: AnyPath, schema: Schema, counts: Counter[str], pieces: TokenizerFile | None, vectors: AnyPath | None
) -> Text:
    """Write the vocabulary and the vectors of its words, or the tokenizer's file."""
    read = None if vectors is None else vectors_of_words(vectors, counts)
    words = [] if pieces is not None else choose_words(counts, read.by_word if read else ())
    save_tokens(words, pieces, out)
    if read is None:
        remove(out / VECTORS)
    else:
        with atomic_file(out / VECTORS) as file:
            save_array(matrix_for(words, read.by_word), file)
    sha256 = words_sha256(words) if pieces is None else pieces.sha256
    return text_entry(out, text_fields(schema), words, sha256, pieces, read.dim if read else None)


def _check_columns(out: AnyPath, reader: RowReader, has: Counter[str]) -> None:
    """Raises ValueError for a column that no sample has, with those that there are."""
    needed = dict(TarRows(reader).columns)
    for one in reader.schema.fields:
        if one.kind == "image" and not any(has[name] for name in extensions_of(one)):
            needed["|".join(extensions_of(one))] = f"the field {one.name}"
    for column, needed_by in needed.items():
        if not has[column]:
            there = printable(", ".join(name[:40] for name in sorted(has) if has[name])[:1000])
            raise ValueError(f"{out}: no sample has a column {column!r} for {needed_by}; there are {there}")


def _check_ids(out: AnyPath, shards: Sequence[TarShard]) -> None:
    """Raises ValueError for an id that two samples have, in one tar or in two."""
    indexes = [load_array(out / shard.index_file) for shard in shards]
    ids, offsets = (np.concatenate([index[name] for index in indexes]) for name in ("id", "offset"))
    order = np.argsort(ids, kind="stable")
    if len(again := np.flatnonzero(ids[order][1:] == ids[order][:-1])):
        owner = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
        two = order[again[0] : again[0] + 2]
        places = " and ".join(f"{inside(out, shards[owner[n]].file)} (byte {offsets[n]})" for n in two)
        raise ValueError(f"{places}: two samples have one id; name with --id a column whose values are unique")


# ---- one tar ---------------------------------------------------------------------------------------------------------


def _list_one(job: _Job) -> TarReport:
    """Read a tar and write its indexes and report, unless they are there and the tar is unchanged."""
    path, address, out, options, tokenizer_sha256 = job
    size, version = version_of_tar(path)
    name, reader = name_of_index(path, address), options.reader
    about = [VERSION, reader.schema.to_dict(), reader.unlabelled, tokenizer_sha256, address, size, version]
    report = TarReport(key=hashlib.sha256(json.dumps(about).encode()).hexdigest())
    report_file = out / FOLDER / f"{name}.samples.json"
    if (known := _known(report_file, out, report.key)) is not None:
        return known
    remove(report_file)
    split = _split_of_file(path) if reader.schema.split_by == FILE else "train"
    try:
        with local_copy(path) as local:
            index = read_index(local)
            report.notes += index.notes
            records = _read(mapped(local), index, split, options, report)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for split, own in records.items():
        shard = TarShard(
            file=address,
            split=split,
            samples=len(own),
            **TarShard.counted(own["has"]),
            bytes=size,
            sha256=_identity(own, index.links, address, report),
            name=name,
            version=version,
            links=len(index.links),
        )
        report.shards.append(shard)
        with atomic_file(out / shard.index_file) as file:
            save_array(own, file)
        if shard.links:
            with atomic_file(out / shard.links_file) as file:
                save_array(index.links, file)
    write_sealed(report_file, vars(report) | {"shards": [asdict(shard) for shard in report.shards]})
    return report


def _known(report_file: AnyPath, out: AnyPath, key: str) -> TarReport | None:
    """The report of a tar that is listed already; None if it is another tar's or options', or a file is damaged."""
    try:
        report = read_sealed(TarReport, report_file, "it is made again")
        for shard in report.shards:
            records, links = load_array(out / shard.index_file), load_links(out, shard)
            if _identity(records, links, shard.file, report) != shard.sha256:
                return None
    except (FileNotFoundError, ValueError):
        return None
    return report if report.key == key else None


def _identity(records: NDArray[np.void], links: NDArray[np.int64], address: str, report: TarReport) -> str:
    written = records.tobytes() + links.tobytes() + f"{address} {report.content_sha256}".encode()
    return hashlib.sha256(written).hexdigest()


def _split_of_file(path: AnyPath) -> str:
    """The split that a tar is named after. Raises ValueError if it is none, or several."""
    for name in (path.name, path.parent.name):
        splits = {SPLIT_OF_WORD[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_OF_WORD}
        if len(splits) == 1:
            return splits.pop()
        if splits:
            break
    raise ValueError(f"{path}: --split_by {FILE} takes the split from {FILE_RULE}, which has none, or several")


@lru_cache(maxsize=1)
def _tokenizer(name: str) -> Any:
    """What makes the tokens of a text; the number of words does not depend on the vocabulary."""
    return WordTokenizer({}) if name == BY_WORDS else read_tokenizer_file(name).pieces


def _read(
    data: memoryview, index: TarIndex, split: str, options: TarOptions, report: TarReport
) -> dict[str, NDArray[np.void]]:
    """Read the samples of a tar that is named after a split; split -> records, RECORD [samples], and their report."""
    schema, rows, tokenizer = options.reader.schema, TarRows(options.reader), _tokenizer(options.tokenizer)
    links, left_out, moments, digest = (
        links_of(index.links),
        LeftOut(),
        _moments(options.reader.schema),
        hashlib.sha256(),
    )
    records: dict[str, list[tuple[int, int, int, int, int]]] = {split: [] for split in SPLITS}
    for _, offset, size, _, _ in index.records.tolist():
        place = data[offset : offset + size]
        key, members = members_at(place, offset, lambda: links, lambda start, length: data[start : start + length])
        where = f"the sample {printable(key)[:80]} at byte {offset}"
        found = TarSample(rows, tokenizer, key, members, split, where, left_out)
        if reason := _why_not(found, report, left_out, schema):
            report.lost[reason] += 1
            continue
        sample = found.sample
        assert sample is not None
        there = [one for one in schema.fields if found.has(one)]
        own_split = split if schema.split_by == FILE else split_of(number_of_id(sample.split_by))
        longest = max((len(found.tokens(one)) for one in there if one.kind == "text"), default=0)
        has = schema.bits(tuple(one.name for one in there))
        records[own_split].append((number_of_id(found.id), offset, size, min(longest, 65_535), has))
        report.labels[own_split].update(sample.labels)
        report.unlabelled += not sample.labels
        digest.update(repr((found.id, sample.labels, sample.values)).encode())
        for name, value in sample.values.items() if own_split == "train" else ():
            if isinstance(value, list):
                moments[name].add(value)
            elif options.tokenizer == BY_WORDS:  # those of val and test would leak into training
                report.words.update(tokenise(value))
        forget_rare(report.words)
    report.moments = {name: running.sums for name, running in moments.items()}
    report.left_out, report.content_sha256 = left_out.examples(), digest.hexdigest()
    return {split: np.array(own, RECORD) for split, own in records.items() if own}


def _why_not(sample: TarSample, report: TarReport, left_out: LeftOut, schema: Schema) -> str:
    """Why a sample is left out; "" if it is not. Raises ValueError for a cell that is not as the schema says."""
    reason, example = "", sample.where
    try:
        report.columns.update(sample.columns(with_keys=len(report.columns) < MOST_COLUMNS))
    except ValueError as error:
        reason, example = "a damaged .json", str(error)
    else:
        if not sample.id:
            reason = "a blank id"
        elif sample.sample is None:
            return "no label"  # which the reader of rows has counted
        elif not any(map(sample.has, schema.fields)):
            reason = "none of the fields"
    if reason:
        left_out.add(f"samples with {reason}, left out", example)
    return reason
