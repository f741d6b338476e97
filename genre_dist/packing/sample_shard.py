"""Packing of a declared data set: its samples -> a shard with index and report, its shards -> a manifest."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.catalogue.sample_table import images_of
from genre_dist.catalogue.samples import image_file
from genre_dist.packing.kinds import Kind, Packing, text_of_manifest
from genre_dist.packing.layout import NO_SHARDS, ExistingShards, manifest_there, whole_shards
from genre_dist.packing.sample_layout import choose_samples, lay_out_samples
from genre_dist.packing.sample_recipe import (
    OddImage,
    SampleRecipe,
    SampleShardReport,
    UnusableImage,
    image_lines,
    recipe_of,
)
from genre_dist.packing.shard import (
    READ_AHEAD,
    Job,
    Outcome,
    finished,
    key_of,
    outcome_of,
    read_image,
    tar_of,
    tokenizer_for,
    tokens_member,
)
from genre_dist.packing.shard_report import ODD, UNREADABLE, report_path, save_report, shortened
from genre_dist.packing.splits import DECLARED_RULE
from genre_dist.packing.tokenizer import Tokenizer
from genre_dist.printable import printable
from genre_dist.sample_ids import member_key, number_of_id
from genre_dist.schema import Schema
from genre_dist.storage import AnyPath, is_remote, remove
from genre_dist.stream import tar
from genre_dist.stream.index import RECORD, array_bytes, index_path, save_array
from genre_dist.stream.manifest import SPLITS, SampleManifest, load_manifest, save_manifest
from genre_dist.stream.sample_manifest import SampleShard
from genre_dist.workers import outcomes

Images = dict[str, bytes | OSError]
"""Image field -> the bytes of its file, or the error on opening it."""


@dataclass(frozen=True, kw_only=True)
class SampleJob(Job):
    """One shard to pack."""

    schema: Schema


def samples_kind(schema: Schema) -> Kind:
    """How the catalogue of a declared data set is packed."""
    return Kind(
        what="sample",
        recipe=partial(recipe_of, schema),
        existing_shards=_existing_shards,
        choose=partial(choose_samples, schema),
        lay_out=partial(lay_out_samples, schema, SampleJob),
        pack_shard=pack_sample_shard,
        finished=partial(finished, kind=SampleShardReport),
        manifest=partial(_manifest, schema),
        load=load_manifest,
    )


def _existing_shards(out: AnyPath, recipe: SampleRecipe) -> ExistingShards:
    """The shards of a folder with a manifest, see `layout.existing_shards`."""
    manifest = manifest_there(out, SampleManifest)
    if manifest is None:
        return NO_SHARDS
    existing = whole_shards(out, manifest, recipe, SampleShardReport)
    return existing._replace(moments=manifest.numbers) if existing.reports else existing


def pack_sample_shard(job: SampleJob) -> SampleShardReport:
    """Write one shard, its index and its report; returns the report, shortened.

    Raises OSError naming a file that cannot be written; no half-written file stays.
    """
    cv2.setNumThreads(0)  # each core packs one shard
    path, schema = job.out / job.file, job.schema
    remove(report_path(path))  # an older report must never describe the new tar
    tokenizer = tokenizer_for(job)
    records: list[tuple[int, int, int, int, int]] = []
    labels: Counter[str] = Counter()
    images = _ImageNotes(job.recipe)
    digest = hashlib.sha256()
    offset = 0
    with atomic_file(path) as file, open(job.films, encoding="utf-8") as samples:
        for sample, files in _with_images(map(json.loads, samples), job):
            outcomes_of = {name: outcome_of(_path(job, name, sample), files[name], job.recipe) for name in files}
            if not images.take(sample["id"], outcomes_of):
                continue
            members, has, length = _members(sample, schema, outcomes_of, tokenizer)
            data = tar_of(member_key(sample["id"]), members)
            file.write(data)
            digest.update(data)
            records.append((number_of_id(sample["id"]), offset, len(data), length, has))
            offset += len(data)
            labels.update(sample["labels"])
        file.write(tar.END)
        digest.update(tar.END)
    index = np.array(records, RECORD)
    with atomic_file(index_path(path)) as file:
        save_array(index, file)
    report = SampleShardReport(
        key=key_of(job),
        recipe=job.recipe,
        shard=_shard(job, index, offset + len(tar.END), digest.hexdigest()),
        label_counts=[labels[name] for name in schema.labels.classes],
        left_out=dict(images.left_out),
        images=dict(sorted(images.kinds.items())),
        odd=images.odd,
        problems=images.problems,
    )
    save_report(report, path)
    shorter: SampleShardReport = shortened(report)
    return shorter


def _shard(job: Job, index: NDArray[np.void], size: int, sha256: str) -> SampleShard:
    """The manifest's entry for a tar of `size` bytes; index: RECORD [samples]."""
    counts = SampleShard.counted(index["has"])
    return SampleShard(file=job.file, split=job.split, samples=len(index), **counts, bytes=size, sha256=sha256)


class _ImageNotes:
    """What became of a shard's images, for its report."""

    def __init__(self, recipe: SampleRecipe) -> None:
        self._require = recipe.require
        self.kinds: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.odd: list[OddImage] = []
        self.problems: list[UnusableImage] = []

    def take(self, id: str, images: dict[str, Outcome]) -> bool:
        """Note a sample's images; False if it is left out for one that is required and cannot be read."""
        lost = [name for name, image in images.items() if image.kind == UNREADABLE and name in self._require]
        for name, image in images.items():
            self.kinds[image.kind] += 1
            if image.kind == ODD:
                self.odd.append({"id": id, "odd": f"{name}: {image.note}"})
            elif image.kind == UNREADABLE:
                self.problems.append({"id": id, "problem": f"{name}: {image.note}", "left_out": bool(lost)})
        if lost:
            self.left_out[images[lost[0]].reason.replace("poster", lost[0])] += 1
        return not lost


def _members(
    sample: dict[str, Any], schema: Schema, images: dict[str, Outcome], tokenizer: Tokenizer
) -> tuple[dict[str, bytes], int, int]:
    """A sample's members, the bits of its fields, and the length of its longest text in tokens."""
    about = {"id": sample["id"], "labels": sample["labels"]}
    members = {"json": json.dumps(about, ensure_ascii=False).encode()}
    has = longest = 0
    for field in schema.fields:
        value = sample["fields"][field.name]
        if field.kind == "image":
            data = images[field.name].jpeg if field.name in images else None
        elif value is None:
            data = None
        elif field.kind == "text":
            tokens = tokenizer.encode(value)
            data, longest = tokens_member(tokens), max(longest, min(len(tokens), 65_535))
        else:
            data = array_bytes(np.array(value, np.float32))
        if data is not None:
            members[field.extension] = data
            has |= schema.bit(field.name)
    return members, has, longest


def _path(job: Job, field: str, sample: dict[str, Any]) -> AnyPath:
    return image_file(job.catalogue, field, number_of_id(sample["id"]))


def _with_images(samples: Iterable[dict[str, Any]], job: SampleJob) -> Iterator[tuple[dict[str, Any], Images]]:
    """Each sample with the files of its images. Remote files are requested READ_AHEAD samples at a time."""
    if not is_remote(job.catalogue):
        yield from ((sample, _read(sample, job)) for sample in samples)
        return
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for sample, images in outcomes(pool, partial(_read, job=job), samples, READ_AHEAD, in_order=True):
            yield sample, images.result()


def _read(sample: dict[str, Any], job: SampleJob) -> Images:
    names = [field.name for field in images_of(job.schema) if sample["fields"][field.name] is not None]
    return {name: read_image(_path(job, name, sample)) for name in names}


def _manifest(schema: Schema, packing: Packing, reports: list[SampleShardReport]) -> SampleManifest:
    """Write the manifest of these shards, and print what is odd about their images."""
    counts = {split: np.zeros(len(schema.labels.classes), int) for split in SPLITS}
    left_out = Counter(packing.chosen.left_out)
    for report in reports:
        counts[report.shard.split] += report.label_counts
        left_out.update(report.left_out)
    recipe = packing.recipe
    texts = ",".join(field.name for field in schema.fields if field.kind == "text")
    manifest = SampleManifest(
        folder=packing.out,
        declared=schema,
        image={"size": recipe.size, "fit": recipe.fit, "quality": recipe.quality},
        text=text_of_manifest(packing, texts or "none"),
        numbers=dict(packing.chosen.moments),
        require=recipe.require,
        split_rule=DECLARED_RULE,
        label_counts={split: count.tolist() for split, count in counts.items()},
        left_out=dict(sorted(left_out.items())),
        shards=tuple(report.shard for report in reports),
    )
    save_manifest(manifest)
    for line in image_lines(reports):
        print(printable(line))
    return manifest
