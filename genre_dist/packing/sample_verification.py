"""Verification of shards of a declared data set: manifest, indexes and reports against tars, every sample decoded."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from genre_dist.packing.sample_recipe import SampleShardReport
from genre_dist.packing.shard_report import read_report, report_path
from genre_dist.packing.splits import DECLARED_RULE, split_of
from genre_dist.packing.verification import (
    FAULTS,
    check_file,
    check_layout,
    check_shards,
    index_of_shard,
    repeated_films,
)
from genre_dist.printable import printable
from genre_dist.sample_ids import id_of_key, number_of_id
from genre_dist.schema import Field
from genre_dist.storage import AnyPath
from genre_dist.stream import tar
from genre_dist.stream.decode import decode_jpeg
from genre_dist.stream.index import array_in
from genre_dist.stream.manifest import FILE, SPLITS
from genre_dist.stream.sample import load_about, load_tokens
from genre_dist.stream.sample_manifest import SampleManifest, SampleShard


def verify_samples(manifest: SampleManifest) -> list[str]:
    """Check the whole manifest and every sample; returns one line for each fault, naming file and sample.

    Faults are those of `verification.verify`. The split of a sample is checked where samples are split by their ids.
    """
    checker = _Checker(manifest)
    faults = check_shards(manifest, DECLARED_RULE, checker.check)
    faults = faults or list(checker.check_labels())
    return [printable(fault) for fault in faults]


class _Checker:
    """Checks one shard after the other and counts their labels."""

    def __init__(self, manifest: SampleManifest) -> None:
        self._manifest = manifest
        self._classes = {name: number for number, name in enumerate(manifest.declared.labels.classes)}
        self._labels = {split: np.zeros(len(self._classes), np.int64) for split in SPLITS}
        self._repeated = repeated_films(manifest)

    def check(self, path: AnyPath, local: Path, shard: SampleShard) -> Iterator[str]:
        """Compare a shard's files with each other and the manifest. `local` is its tar on this machine."""
        yield from check_file(path, local, shard)
        report = read_report(path, SampleShardReport)
        if report is not None and report.shard != shard:
            yield f"{report_path(path)}: tells of other counts or checksums than the manifest"
        records = index_of_shard(path)
        counts = Counter(map(str, records["has"].tolist()))
        if counts != shard.has:
            yield f"{path}: samples by fields {dict(counts)} where the manifest has {shard.has}"
        with open(local, "rb") as file:
            for record in records:
                for fault in self._check_sample(file, record, shard.split):
                    yield f"{path}: sample at byte {int(record['offset'])}: {fault}"
            yield from (f"{path}: {fault}" for fault in check_layout(file, records))

    def _check_sample(self, file: IO[bytes], record: np.void, split: str) -> list[str]:
        offset, size = int(record["offset"]), int(record["size"])
        faults = []
        if int(record["id"]) in self._repeated:
            faults.append("its id is in the shards twice")
        try:
            if offset < 0 or offset + size > file.seek(0, 2):
                raise ValueError(f"{size:,} bytes there are more than the tar has")
            file.seek(offset)
            data = memoryview(file.read(size))
            named = [(*member.name.partition("."), member) for member in tar.members(data)]
            (key,) = {key for key, *_ in named} or {""}
            parts = {extension: data[part.start : part.start + part.size] for _, _, extension, part in named}
            id = id_of_key(key)
            faults += self._check_members(id, record, parts, split)
            if sum(tar.BLOCK + tar.padded(len(part)) for part in parts.values()) != size:
                faults.append("there are bytes among its members that belong to none: links, or a member twice")
        except FAULTS as error:
            faults.append(f"no member .{error.args[0]}" if isinstance(error, KeyError) else str(error))
        return faults

    def _check_members(self, id: str, record: np.void, parts: dict[str, memoryview], split: str) -> Iterator[str]:
        """Faults of one sample's members, decoded as training decodes them."""
        declared = self._manifest.declared
        if number_of_id(id) != record["id"]:
            yield f"{id} is another sample than the index has there"
        if declared.split_by == declared.id and split_of(number_of_id(id)) != split:
            yield f"{id} belongs to {split_of(number_of_id(id))}, not {split}"
        yield from self._check_about(id, parts["json"], split)
        has = {field.name for field in declared.fields if int(record["has"]) & declared.bit(field.name)}
        wanted = {"json"} | {declared.by_name[name].extension for name in has}
        if missing := sorted(wanted - parts.keys()):
            yield f"no member .{', .'.join(missing)}"
        if strange := sorted(parts.keys() - wanted):
            yield f"the index knows nothing of its member .{', .'.join(strange)}"
        if lacking := sorted(set(self._manifest.require) - has):
            yield f"it has no {' and no '.join(lacking)}, which the manifest requires"
        there = [field for field in declared.fields if field.extension in parts]
        lengths = [self._length(field, parts[field.extension]) for field in there]
        if min(max(lengths, default=0), 65_535) != record["tokens"]:
            yield f"{max(lengths)} tokens where the index has {record['tokens']}"

    def _length(self, field: Field, data: memoryview) -> int:
        """Decode a member; returns the length of a text, else 0. Raises ValueError for what cannot be trained on."""
        if field.kind == "text":
            return len(load_tokens(data, self._manifest.text["words"]))
        if field.kind == "image":
            size = self._manifest.image["size"]
            decode_jpeg(data, np.empty((size, size, 3), np.uint8))
        else:
            numbers = array_in(data)
            if numbers.dtype != np.float32 or numbers.shape != (len(field.columns),) or np.isinf(numbers).any():
                raise ValueError(f".{field.extension} is not {len(field.columns)} numbers")
        return 0

    def _check_about(self, id: str, data: memoryview, split: str) -> Iterator[str]:
        about: dict[str, Any] = load_about(data)
        if about.get("id") != id:
            yield f"its .json tells of {str(about.get('id'))[:60]}"
        labels = about.get("labels")
        if not isinstance(labels, list) or len(set(map(str, labels))) != len(labels):
            yield "its .json has no list of different labels"
            return
        if self._manifest.declared.labels.choose == "one" and len(labels) != 1:
            yield f"{len(labels)} labels, where it has exactly one"
        for name in labels:
            if name in self._classes:
                self._labels[split][self._classes[name]] += 1
            else:
                yield f"the label {str(name)[:60]!r} is not in the manifest"

    def check_labels(self) -> Iterator[str]:
        """Compare the manifest's counts of labels with the shards checked."""
        for split in SPLITS:
            if self._labels[split].tolist() != self._manifest.label_counts[split]:
                yield f"{FILE}: label_counts of {split} disagree with the shards"
