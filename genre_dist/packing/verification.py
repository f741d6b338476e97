"""Verification of shards: every number and checksum of the manifest against the files, and every sample decoded."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from genre_dist.packing.shard_report import NO_FILE, NO_PICTURE, NOT_OPENED, read_report, report_kind, report_path
from genre_dist.packing.tokenizer import token_name, tokenizer_of
from genre_dist.printable import printable
from genre_dist.progress import progress_bar
from genre_dist.schema import TMDB, Field
from genre_dist.splits import rule_of, split_of
from genre_dist.storage import AnyPath, local_copy, sha256_of
from genre_dist.stream import tar
from genre_dist.stream.decode import decode_jpeg
from genre_dist.stream.index import RECORD, DamagedArrayError, index_path, load_array
from genre_dist.stream.manifest import FILE, SPLITS, AnyShard, Manifest
from genre_dist.stream.sample import labels_in, load_about, load_tokens, read_numbers, sample_in
from genre_dist.stream.words import load_vectors

FAULTS = (ValueError, KeyError, OSError, EOFError)
_ROWS = 1 << 16
"""Word vectors checked at a time."""


def verify(manifest: Manifest) -> list[str]:
    """Check the whole manifest and every sample; returns one line for each fault, naming file and sample.

    Faults are: changed, missing or cut files, an index, a report or a manifest that disagrees with the tar, missing or
    damaged members, bytes that belong to no sample, labels and tokens out of range, a sample twice or in the wrong
    split (where it is decided by its id). Raises ValueError for encodings: damaged ones are simply made again.
    """
    if manifest.encoding is not None:
        raise ValueError(f"{manifest.folder}: these are encodings; verify the shards they were made from")
    checker, faults = _ShardChecker(manifest), list(check_words(manifest))
    if manifest.split_rule != (rule := rule_of(manifest.declared)):
        samples = manifest.declared.samples
        faults.append(f"{FILE}: its split rule is not the one that {samples} are compared with here: {rule}")
    with progress_bar() as progress:
        for shard in progress.track(manifest.shards, description="verifying shards"):
            path = manifest.folder / shard.file
            try:
                with local_copy(path) as file:
                    shard_faults = list(checker.check(path, file, shard))
            except FAULTS as error:
                fault = str(error)
                shard_faults = [fault if str(path.with_suffix("")) in fault else f"{path}: {fault}"]
            faults += shard_faults
    faults = faults or list(checker.check_labels())
    faults = faults or list(_check_reports(manifest))
    return [printable(fault) for fault in faults]


def _repeated(manifest: Manifest) -> set[int]:
    """Ids that the indexes have more than once, by sorting 8 bytes a sample; a damaged index is skipped."""
    ids_of = [np.empty(0, np.int64)]
    for shard in manifest.shards:
        with suppress(*FAULTS):
            records = load_array(index_path(manifest.folder / shard.file))
            ids_of += [np.array(records["id"])] if records.dtype == RECORD and records.ndim == 1 else []
    ids = np.concatenate(ids_of)
    ids.sort()
    return set(ids[1:][ids[1:] == ids[:-1]].tolist())


def check_words(manifest: Manifest) -> Iterator[str]:
    """Faults of the vocabulary and its vectors."""
    text = manifest.text
    try:
        tokenizer = tokenizer_of(manifest.folder, text)
        if tokenizer.size != text["words"]:
            path = manifest.folder / text["vocabulary"]
            yield f"{path}: {tokenizer.size} {token_name(text)} where the manifest has {text['words']}"
    except FAULTS as error:
        yield str(error)
    try:
        vectors = load_vectors(manifest.folder, text)
    except FAULTS as error:
        yield str(error)
        return
    for start in range(0, 0 if vectors is None else len(vectors), _ROWS):
        rows = np.isfinite(vectors[start : start + _ROWS]).all(axis=1)  # type: ignore[index]
        if not rows.all():
            yield f"{manifest.folder}/{text['vectors']}: the vector of word {start + int(rows.argmin())} is no number"
            return


class _ShardChecker:
    """Checks one shard after the other and counts their labels."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._declared = manifest, manifest.declared
        self._of_films = manifest.declared == TMDB
        self._columns = {label: number for number, label in enumerate(manifest.label_ids)}
        self._labels = {split: np.zeros(len(manifest.genres), np.int64) for split in SPLITS}
        self._repeated = _repeated(manifest)
        self._seen_repeated: set[int] = set()

    def check(self, path: AnyPath, local: Path, shard: AnyShard) -> Iterator[str]:
        """Compare a shard's files with each other and the manifest. `local` is its tar on this machine."""
        if (size := local.stat().st_size) != shard.bytes:
            yield f"{path}: {size:,} bytes where the manifest has {shard.bytes:,}"
        if sha256_of(local) != shard.sha256:
            yield f"{path}: the checksum differs from the manifest's; fetch or pack it again"
        records = _index_of_shard(path)
        if len(records) != shard.samples:
            yield f"{index_path(path)}: {len(records)} records where the manifest has {shard.samples} samples"
        yield from (f"{path}: {fault}" for fault in self._check_counts(records["has"], shard))
        with open(local, "rb") as file:
            for record in records:
                name, faults = self._check_sample(file, record, shard.split)
                what = f"{self._declared.sample} {name} at byte {int(record['offset'])}"
                yield from (f"{path}: {what}: {fault}" for fault in faults)
            yield from (f"{path}: {fault}" for fault in self._check_layout(file, records))

    def _check_counts(self, has: NDArray[np.uint16], shard: AnyShard) -> Iterator[str]:
        """Faults of the manifest's counts of samples by their fields."""
        agree, names = True, tuple(self._declared.by_name)
        for fields in dict.fromkeys([*((name,) for name in names), names]):
            mask, wanted = self._declared.bits(fields), self._manifest.count(shard, fields)
            if (count := int(((has & mask) == mask).sum())) != wanted:
                agree = False
                yield f"{count} samples with {' and '.join(fields)} where the manifest has {wanted}"
        if agree and Counter(has.tolist()) != +Counter(shard.by_fields):
            yield "other samples by their fields than the manifest has"

    def _check_sample(self, file: IO[bytes], record: np.void, split: str) -> tuple[str, list[str]]:
        """The id of a sample, as its data set has it if that can be read, and its faults."""
        declared = self._declared
        id, offset, size = (int(record[name]) for name in ("id", "offset", "size"))
        name, faults = str(id), []
        if id in self._seen_repeated:
            faults.append(f"the {declared.sample} is in the shards twice")
        if id in self._repeated:
            self._seen_repeated.add(id)
        if declared.split_by == declared.id and split_of(id) != split:
            faults.append(f"the {declared.sample} belongs to {split_of(id)}, not {split}")
        try:
            if offset < 0 or offset + size > file.seek(0, 2):
                raise ValueError(f"{size:,} bytes there are more than the tar has")
            file.seek(offset)
            name, members = sample_in(file.read(size), id, declared)
            faults += self._check_members(name, record, members, split)
            if sum(tar.BLOCK + tar.padded(len(part)) for part in members.values()) != size:
                faults.append("there are bytes among its members that belong to none: links, or a member twice")
        except FAULTS as error:
            faults.append(str(error))
        return name, faults

    def _check_members(self, name: str, record: np.void, members: dict[str, memoryview], split: str) -> Iterator[str]:
        """Faults of one sample's members, decoded as training decodes them."""
        declared = self._declared
        fields = [field for field in declared.fields if int(record["has"]) & declared.bit(field.name)]
        wanted = {"json"} | {field.extension for field in fields}
        if missing := sorted(wanted - members.keys()):
            yield f"no member .{', .'.join(missing)}"
        if strange := sorted(members.keys() - wanted):
            yield f"the index knows nothing of its member .{', .'.join(strange)}"
        if lacking := sorted(set(self._manifest.require) - {field.name for field in fields}):
            yield f"it has no {' and no '.join(lacking)}, which the manifest requires"
        if "json" in members:
            yield from self._check_about(members["json"], name, split)
        there = [field for field in declared.fields if field.extension in members]
        longest = max((self._decode(field, members[field.extension]) for field in there), default=0)
        if min(longest, 65_535) != record["tokens"]:
            yield f"{longest} tokens where the index has {record['tokens']}"

    def _decode(self, field: Field, data: memoryview) -> int:
        """Decode a member; returns the length of a text, else 0. Raises ValueError for what cannot be trained on."""
        if field.kind == "text":
            return len(load_tokens(data, self._manifest.text["words"]))
        if field.kind == "image":
            size = self._manifest.image["size"]
            decode_jpeg(data, np.empty((size, size, 3), np.uint8))
        else:
            read_numbers(data, len(field.columns))
        return 0

    def _check_about(self, data: memoryview, name: str, split: str) -> Iterator[str]:
        labels = labels_in(data, self._declared)
        if self._declared.labels.choose == "one" and len(labels) != 1:
            yield f"{len(labels)} labels, where it has exactly one"
        for label in labels:
            if label in self._columns:
                self._labels[split][self._columns[label]] += 1
            else:
                yield f"the {self._declared.label} {str(label)[:60]} is not in the manifest"
        other = str(load_about(data).get("tmdb_id" if self._of_films else "id", name))
        if other != name:
            yield f"its .json describes {self._declared.sample} {other[:60]}"

    def check_labels(self) -> Iterator[str]:
        """Compare the manifest's counts of labels with the shards checked."""
        counts = "genre_counts" if self._of_films else "label_counts"
        for split in SPLITS:
            if self._labels[split].tolist() != self._manifest.genre_counts[split]:
                yield f"{FILE}: {counts} of {split} disagree with the shards"

    def _check_layout(self, file: IO[bytes], records: NDArray[np.void]) -> Iterator[str]:
        """Faults of the layout: samples follow each other from byte 0 without gaps, the end mark follows the last."""
        ends = records["offset"] + records["size"]
        away = np.flatnonzero(records["offset"] != np.concatenate([[0], ends[:-1]]))
        if len(away):
            id = records["id"][away[0]]
            yield f"{self._declared.sample} {id} does not begin where the sample before it ends"
        end = int(ends[-1]) if len(ends) else 0
        size = file.seek(0, 2)
        if end > size:
            return
        file.seek(end)
        if size - end < len(tar.END):
            yield f"the end mark at byte {end} is missing; the tar was cut"
        elif any(part.strip(b"\0") for part in iter(lambda: file.read(1 << 20), b"")):
            yield f"{size - end:,} bytes behind the last sample, at byte {end}, are not the end mark of a tar"


def _index_of_shard(path: AnyPath) -> NDArray[np.void]:
    """The index beside a tar, RECORD [samples]. Raises ValueError for anything else."""
    try:
        records = load_array(index_path(path))
    except DamagedArrayError as error:
        raise ValueError(f"{index_path(path)}: {error}") from None
    if records.dtype != RECORD or records.ndim != 1:
        raise ValueError(f"{index_path(path)}: not an index of a shard")
    return records


def _check_reports(manifest: Manifest) -> Iterator[str]:
    """Compare the manifest with the reports that are still there, and so the samples left out for their images."""
    image, text = manifest.image, manifest.text
    options = (image["size"], image["fit"], image["quality"], text["source"], text["vocabulary_sha256"])
    left_out: Counter[str] = Counter()
    missing = False
    for shard in manifest.shards:
        path = manifest.folder / shard.file
        try:
            report = read_report(path, report_kind(manifest.declared))
        except ValueError as error:
            yield str(error)
            return
        if report is None:
            missing = True
            continue
        recipe, source = report.recipe, report.recipe.text or text["source"]
        there = (recipe.size, recipe.fit, recipe.quality, source, recipe.vocabulary_sha256)
        if report.shard != shard or there != options or recipe.require != manifest.require:
            yield f"{report_path(path)}: describes other counts, checksums or options than the manifest"
            return
        left_out.update(report.left_out)
    images = [field.name for field in manifest.declared.fields if field.kind == "image"]
    for reason in (reason.format(name) for name in images for reason in (NO_PICTURE, NO_FILE, NOT_OPENED)):
        stated, count = manifest.left_out.get(reason, 0), left_out[reason]
        if stated != count and not (missing and stated > count):
            samples = manifest.declared.samples
            yield f"{FILE}: {stated} {samples} left out with {reason} where the reports of the shards have {count}"
