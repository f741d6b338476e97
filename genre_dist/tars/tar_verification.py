"""Verification of listed tars: size and version of each tar, every index, and every sample, read and decoded."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from genre_dist.packing.verification import FAULTS, check_words
from genre_dist.printable import printable
from genre_dist.progress import progress_bar
from genre_dist.storage import inside
from genre_dist.stream.foreign import version_of_tar
from genre_dist.stream.manifest import FILE, SPLITS, TarManifest
from genre_dist.stream.order import Rows
from genre_dist.stream.tar_manifest import TarShard
from genre_dist.tars.sample_reader import reader_type

LONGEST = 65_535
"""Most tokens that an index counts."""
TOGETHER = 32
"""Samples that are decoded at once."""


def verify_tars(manifest: TarManifest) -> list[str]:
    """Check the manifest and every sample; returns one line for each fault, naming tar, byte and sample.

    Faults are: a tar that is missing or has changed since it was listed, an index that disagrees with the manifest, a
    sample that cannot be read as training reads it, counts of labels that the samples do not have.
    """
    faults = list(check_words(manifest))
    labels = {split: np.zeros(len(manifest.genres), np.int64) for split in SPLITS}
    total = sum(shard.samples for shard in manifest.shards)
    with progress_bar() as progress:
        task = progress.add_task("verifying tars", total=total)
        if not faults:
            for samples, found in _check_samples(manifest, labels):
                faults += found
                progress.advance(task, samples)
    if not faults and {split: counts.tolist() for split, counts in labels.items()} != manifest.label_counts:
        faults.append(f"{FILE}: label_counts disagree with the tars")
    return [printable(fault) for fault in dict.fromkeys(faults)]  # a tar of several splits has changed once


def _check_samples(manifest: TarManifest, labels: dict[str, Any]) -> Iterator[tuple[int, list[str]]]:
    """Some samples' number and faults at a time; adds their labels by split."""
    fields = tuple(manifest.declared.by_name)
    for split in SPLITS:
        reader = reader_type(manifest)(manifest, split, fields, LONGEST, any_of=True)
        for number, shard in enumerate(reader.index.shards):
            try:
                if fault := _changed(manifest, shard):
                    yield shard.samples, [fault]
                    continue
                rows = reader.index.rows_of(number)
                for start in range(0, len(rows.row), TOGETHER):
                    batch = reader.read(Rows(*(part[start : start + TOGETHER] for part in rows)))
                    labels[split] += batch.labels.sum(0).astype(np.int64)
                    yield len(batch.ids), batch.faults
            except FAULTS as error:
                yield shard.samples, [str(error)]


def _changed(manifest: TarManifest, shard: TarShard) -> str | None:
    path = inside(manifest.folder, shard.file)
    if version_of_tar(path) != (shard.bytes, shard.version):
        return f"{path}: it has changed since it was listed; run `genre-dist index` again"
    return None
