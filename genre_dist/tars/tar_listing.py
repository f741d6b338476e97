"""Listing anyone's tars with a schema, so that they can be trained on as they are: an index of each, and a manifest.

The tars stay unchanged. Each is read once, for labels, texts and numbers; a report beside its indexes marks it as done.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.catalogue.importing_samples import Known, SampleReport, notes, resolved
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.sample_rows import RowReader
from genre_dist.catalogue.schema_file import MOST_CLASSES
from genre_dist.packing.kinds import VECTORS, token_file
from genre_dist.packing.pack import save_tokens, vectors_of_words
from genre_dist.packing.sample_layout import RunningMoments
from genre_dist.packing.shard_report import check_image_options
from genre_dist.packing.splits import DECLARED_RULE, split_of
from genre_dist.packing.tokenizer import BY_WORDS, TokenizerFile, WordTokenizer, read_tokenizer_file
from genre_dist.packing.vectors import matrix_for, require_vectors
from genre_dist.packing.vocabulary import choose_words, forget_rare, tokenise, words_sha256
from genre_dist.printable import printable
from genre_dist.progress import progress_bar
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import Schema
from genre_dist.storage import AnyPath, inside, local_copy, read_bytes, remove
from genre_dist.stream.foreign import addresses, name_of_index, version_of_tar
from genre_dist.stream.index import RECORD, DamagedArrayError, load_array, save_array
from genre_dist.stream.indexing import TarIndex, read_index
from genre_dist.stream.manifest import SPLITS, TarManifest, Text, save_manifest
from genre_dist.stream.tar import mapped
from genre_dist.stream.tar_manifest import FOLDER, TarShard
from genre_dist.stream.tar_reader import links_of, members_at
from genre_dist.stream.words import vectors_sha256
from genre_dist.tars.tar_samples import FILE, TarRows, TarSample, extensions_of
from genre_dist.validation import LARGEST_BYTES, Count, Sha256, parse_json
from genre_dist.workers import in_processes

FILE_RULE = "the word train, val, valid, validation or test in the name of the tar, or of its folder"
SPLIT_OF_WORD = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
VERSION = 1
"""Part of the key of reports; raise it when the same options give other indexes."""
MOST_COLUMNS = 200
"""Keys of JSON members that are remembered of a tar, to be named where the schema names others."""


class TarOptions(NamedTuple):
    """What decides a listing."""

    reader: RowReader
    tokenizer: str = BY_WORDS
    """`words`, or what `read_tokenizer_file` finds."""
    size: int = 256
    fit: str = "squash"


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
    content_sha256: Sha256
    """Of the ids, labels, texts and numbers of its samples."""
    shards: list[TarShard] = field(default_factory=list)
    labels: dict[str, dict[str, Count]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    """Split -> label -> samples."""
    unlabelled: Count = 0
    """Samples that are kept without a label."""
    words: dict[str, Count] = field(default_factory=dict)
    """Of the train split; none with a tokenizer."""
    moments: dict[str, list[list[float]]] = field(default_factory=dict)
    """Field of numbers -> `RunningMoments.sums` over the train split."""
    columns: dict[str, Count] = field(default_factory=dict)
    """Column -> samples that have it."""
    lost: dict[str, Count] = field(default_factory=dict)
    """Reason -> samples that are left out."""
    left_out: list[tuple[str, str, Count]] = field(default_factory=list)
    """Reason, example and count, see `LeftOut`."""
    notes: list[str] = field(default_factory=list)
    """Lines on the tar, see `TarIndex`."""


class Listing(NamedTuple):
    """The result of `list_samples`."""

    manifest: TarManifest
    report: SampleReport
    notes: list[str]
    """Lines on single tars."""


def list_samples(
    tars: Sequence[AnyPath], out: AnyPath, options: TarOptions, vectors: AnyPath | None = None, workers: int = 1
) -> Listing:
    """List tars in `out` so that it can be trained on; unchanged tars that are listed with the same options are kept.

    Raises ValueError that names the tar and, if known, the sample: for what is no tar, for a cell that is not as the
    schema says, for an id that is there twice, for a column that no sample has.
    """
    check_image_options(options.fit, options.size, 100, 1)
    pieces = None if options.tokenizer == BY_WORDS else read_tokenizer_file(options.tokenizer)
    if vectors is not None:
        if pieces is not None:
            raise ValueError("--vectors has vectors of words, and this --tokenizer makes none: drop one of them")
        require_vectors(vectors)
    sha256 = "" if pieces is None else pieces.sha256
    jobs = [_Job(path, address, out, options, sha256) for path, address in zip(tars, addresses(tars, out), strict=True)]
    done: dict[str, TarReport] = {}
    with progress_bar() as progress:
        task = progress.add_task("listing tars", total=len(jobs))
        for job, report in in_processes(_list_one, jobs, workers, "listing tars"):
            done[job.address] = report
            progress.advance(task)
    reports = [done[job.address] for job in jobs]
    shards = sorted((shard for report in reports for shard in report.shards), key=lambda s: SPLITS.index(s.split))
    schema, left_out, known = options.reader.schema, LeftOut(), Known()
    lost, words, columns = Counter[str](), Counter[str](), Counter[str]()
    moments = {one.name: RunningMoments(len(one.columns)) for one in schema.fields if one.kind == "numbers"}
    for report in reports:
        for reason in report.left_out:
            left_out.add(*reason)
        lost.update(report.lost)
        columns.update(report.columns)
        words.update(report.words)
        forget_rare(words)
        known.unlabelled += report.unlabelled
        for counts in report.labels.values():
            known.labels.update(counts)
        for name, running in moments.items():
            running.merge(report.moments[name])
    known.samples = sum(shard.samples for shard in shards)
    for one in schema.fields:
        bit = schema.bit(one.name)
        known.having[one.name] = sum(n for shard in shards for has, n in shard.by_fields.items() if has & bit)
    _check_columns(out, schema, options.reader, columns)
    if len(known.labels) > MOST_CLASSES:
        raise ValueError(f"more than {MOST_CLASSES:,} labels; is {schema.labels.column!r} the column of --labels?")
    schema = resolved(schema, out, known)
    _check_ids(out, shards)
    counted = {split: Counter[str]() for split in SPLITS}
    for report in reports:
        for split, counts in report.labels.items():
            counted[split].update(counts)
    manifest = TarManifest(
        folder=out,
        declared=schema,
        image={"size": options.size, "fit": options.fit, "quality": 100},
        text=_save_text(out, schema, words, pieces, vectors),
        numbers={name: running.result() for name, running in moments.items()},
        require=(),
        split_rule=FILE_RULE if schema.split_by == FILE else DECLARED_RULE.partition("; order")[0],
        label_counts={split: [counts[name] for name in schema.labels.classes] for split, counts in counted.items()},
        left_out=dict(sorted(lost.items())),
        shards=tuple(shards),
    )
    save_manifest(manifest)
    odd = [f"{job.path}: {note}" for job, report in zip(jobs, reports, strict=True) for note in report.notes]
    about = SampleReport(
        schema, known.samples, known.having, known.labels, known.unlabelled, notes(schema, known), left_out
    )
    return Listing(manifest, about, odd)


def _save_text(
    out: AnyPath, schema: Schema, counts: Counter[str], pieces: TokenizerFile | None, vectors: AnyPath | None
) -> Text:
    """Write the vocabulary and the vectors of its words, or the tokenizer's file."""
    read = None if vectors is None else vectors_of_words(vectors, counts)
    words = [] if pieces is not None else choose_words(counts, read.by_word if read else ())
    save_tokens(words, pieces, out)
    text = Text(
        source=",".join(one.name for one in schema.fields if one.kind == "text") or "none",
        vocabulary=token_file(pieces),
        words=len(words),
        vocabulary_sha256=words_sha256(words) if pieces is None else pieces.sha256,
        vectors=VECTORS if read else None,
        dim=read.dim if read else None,
    )
    if read is None:
        remove(out / VECTORS)
    else:
        matrix = matrix_for(words, read.by_word)
        with atomic_file(out / VECTORS) as file:
            save_array(matrix, file)
        text["vectors_sha256"] = vectors_sha256(matrix)
    if pieces is not None:
        own = pieces.pieces
        text |= Text(tokenizer="tokenizers", words=own.size, padding=own.padding, closing=own.closing)  # type: ignore[typeddict-item]
    return text


def _check_columns(out: AnyPath, schema: Schema, reader: RowReader, has: Counter[str]) -> None:
    """Raises ValueError for a column that no sample has, with those that there are."""
    needed = dict(TarRows(reader).columns)
    for one in schema.fields:
        if one.kind == "image" and not any(has[name] for name in extensions_of(one)):
            needed["|".join(extensions_of(one))] = f"the field {one.name}"
    for column, needed_by in needed.items():
        if not has[column]:
            there = printable(", ".join(name[:40] for name in sorted(has) if has[name])[:1000])
            raise ValueError(f"{out}: no sample has a column {column!r} for {needed_by}; there are {there}")


def _check_ids(out: AnyPath, shards: Sequence[TarShard]) -> None:
    """Raises ValueError for an id that two samples have, in one tar or in two."""
    indexes = [load_array(out / shard.index_file) for shard in shards]
    ids = np.concatenate([index["id"] for index in indexes])
    order = np.argsort(ids, kind="stable")
    if len(again := np.flatnonzero(ids[order][1:] == ids[order][:-1])):
        starts = np.cumsum([0, *map(len, indexes)])
        places = []
        for sample in order[again[0] : again[0] + 2]:
            number = int(np.searchsorted(starts, sample, side="right")) - 1
            offset = indexes[number]["offset"][sample - starts[number]]
            places.append(f"{inside(out, shards[number].file)} (byte {offset})")
        raise ValueError(
            f"{' and '.join(places)}: two samples have the same id; name with --id a column whose values are unique"
        )


# ---- one tar ---------------------------------------------------------------------------------------------------------


def _list_one(job: _Job) -> TarReport:
    """Read a tar and write its indexes and report, unless they are there and the tar is unchanged."""
    path, address, out, options, tokenizer_sha256 = job
    size, version = version_of_tar(path)
    name = name_of_index(path, address)
    reader = options.reader
    about = [VERSION, reader.schema.to_dict(), reader.unlabelled, tokenizer_sha256, address, size, version]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    report_file = out / FOLDER / f"{name}.samples.json"
    if (known := _known(report_file, out, key)) is not None:
        return known
    remove(report_file)
    split = _split_of_file(path) if reader.schema.split_by == FILE else "train"
    try:
        with local_copy(path) as local:
            data = mapped(local)
            index = read_index(local)
            report = TarReport(key=key, content_sha256="", notes=list(index.notes))
            records = _Reading(data, index, split, options, report, str(path)).read()
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
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
    with atomic_file(report_file, "w") as file:
        json.dump(asdict(report), file)
    return report


def _known(report_file: AnyPath, out: AnyPath, key: str) -> TarReport | None:
    """The report of a tar that is listed already; None if it is another tar's or options', or a file is damaged."""
    try:
        report = parse_json(TarReport, read_bytes(report_file, LARGEST_BYTES), report_file, "it is made again")
        for shard in report.shards:
            links = load_array(out / shard.links_file) if shard.links else np.empty((0, 3), np.int64)
            if _identity(load_array(out / shard.index_file), links, shard.file, report) != shard.sha256:
                return None
    except (FileNotFoundError, DamagedArrayError, ValueError):
        return None
    return report if report.key == key else None


def _identity(records: NDArray[np.void], links: NDArray[np.int64], address: str, report: TarReport) -> str:
    written = records.tobytes() + links.tobytes() + address.encode() + report.content_sha256.encode()
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


class _Reading:
    """One pass over the samples of a tar, counted in its report."""

    def __init__(
        self, data: memoryview, index: TarIndex, split: str, options: TarOptions, report: TarReport, path: str
    ) -> None:
        self._data, self._index, self._split, self._report, self._path = data, index, split, report, path
        self._rows, self._tokenizer = TarRows(options.reader), _tokenizer(options.tokenizer)
        self._counts_words = options.tokenizer == BY_WORDS
        self._schema = options.reader.schema
        self._left_out, self._lost, self._columns = LeftOut(), Counter[str](), Counter[str]()
        self._words = Counter[str]()
        self._labels = {split: Counter[str]() for split in SPLITS}
        self._moments = {
            one.name: RunningMoments(len(one.columns)) for one in self._schema.fields if one.kind == "numbers"
        }
        self._digest = hashlib.sha256()

    def read(self) -> dict[str, NDArray[np.void]]:
        """Split -> the records of its samples, RECORD [samples]."""
        records: dict[str, list[tuple[int, int, int, int, int]]] = {split: [] for split in SPLITS}
        for sample, offset, size in self._samples():
            if reason := self._why_not(sample):
                self._lost[reason] += 1
                continue
            assert sample.sample is not None
            there = [one for one in self._schema.fields if sample.has(one)]
            split = self._split if self._schema.split_by == FILE else split_of(number_of_id(sample.sample.split_by))
            longest = max((len(sample.tokens(one)) for one in there if one.kind == "text"), default=0)
            has = self._schema.bits(tuple(one.name for one in there))
            records[split].append((number_of_id(sample.id), offset, size, min(longest, 65_535), has))
            self._count(sample, split)
        report = self._report
        report.labels = {split: dict(counts) for split, counts in self._labels.items()}
        report.words, report.columns, report.lost = dict(self._words), dict(self._columns), dict(self._lost)
        report.moments = {name: running.sums for name, running in self._moments.items()}
        report.left_out, report.content_sha256 = self._left_out.examples(), self._digest.hexdigest()
        return {split: np.array(own, RECORD) for split, own in records.items() if own}

    def _samples(self) -> Iterator[tuple[TarSample, int, int]]:
        """Each sample with the place of its bytes."""
        data, links = self._data, links_of(self._index.links)
        for _, offset, size, _, _ in self._index.records.tolist():
            place = data[offset : offset + size]
            key, members = members_at(place, offset, lambda: links, lambda start, length: data[start : start + length])
            where = f"{self._path}: the sample {printable(key)[:80]} at byte {offset}"
            yield TarSample(self._rows, self._tokenizer, key, members, self._split, where, self._left_out), offset, size

    def _why_not(self, sample: TarSample) -> str | None:
        """Why a sample is left out, if it is. Raises ValueError for a cell that is not as the schema says."""
        reason = None
        try:
            self._columns.update(sample.columns(with_keys=len(self._columns) < MOST_COLUMNS))
        except ValueError as error:
            reason, example = "a damaged .json", f"{sample.where}: {error}"
        else:
            example = sample.where
            if not sample.id:
                reason = "a blank id"
            elif sample.sample is None:
                return "no label"  # counted by the reader of rows
            elif not any(map(sample.has, self._schema.fields)):
                reason = "none of the fields"
        if reason:
            self._left_out.add(f"samples with {reason}, left out", example)
        return reason

    def _count(self, found: TarSample, split: str) -> None:
        sample = found.sample
        assert sample is not None
        self._labels[split].update(sample.labels)
        self._report.unlabelled += not sample.labels
        self._digest.update(repr((sample.id, sample.labels, sample.values)).encode())
        if split != "train":
            return
        for name, value in sample.values.items():
            if isinstance(value, list):
                self._moments[name].add(value)
            elif self._counts_words:
                self._words.update(tokenise(value))
        forget_rare(self._words)
