"""Packing of one shard: samples -> a tar, its index and a report, which is written last."""

import errno
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.packing.catalogue_rows import Line, image_path, label_ids, read_line
from genre_dist.packing.posters import MAX_BYTES, UNTOUCHED, square_jpeg
from genre_dist.packing.recipe import Recipe, recipe_key
from genre_dist.packing.shard_report import (
    NO_FILE,
    NO_IMAGE,
    NO_PICTURE,
    NOT_OPENED,
    ODD,
    RESIZED,
    UNREADABLE,
    AnyReport,
    ImageNotes,
    read_report,
    report_kind,
    report_path,
    save_report,
    shortened,
)
from genre_dist.packing.tokenizer import PieceTokenizer, Tokenizer, WordTokenizer
from genre_dist.packing.vocabulary import load_words
from genre_dist.schema import TMDB, Schema
from genre_dist.storage import AnyPath, file_size, is_remote, read_bytes, remove
from genre_dist.stream import tar
from genre_dist.stream.index import RECORD, DamagedArrayError, array_bytes, index_path, load_array, save_array
from genre_dist.stream.manifest import AnyShard, shard_kind
from genre_dist.workers import outcomes

READ_AHEAD = 16
"""Samples whose images are requested at a time from a remote catalogue."""
LONGEST_COUNTED = 65_535
"""Tokens; the index has 16 bits for the length of a text."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to pack."""

    out: AnyPath
    file: str
    split: str
    catalogue: AnyPath
    schema: Schema
    lines: Path
    """Lines of JSON, the shard's samples in order."""
    lines_sha256: str
    words: Path
    """The vocabulary's or the tokenizer's file."""
    recipe: Recipe

    @property
    def key(self) -> str:
        """The key in the report of a shard that is packed as this job says."""
        return recipe_key(self.recipe, self.split, self.lines_sha256)


def finished(job: Job) -> AnyReport | None:
    """The shortened report of a shard that is already packed from the same samples by the same recipe, else None."""
    report = read_report(job.out / job.file, report_kind(job.schema), damaged_is_none=True)
    if report is None or report.key != job.key or ids_of(job.out, report.shard) is None:
        return None
    return shortened(report)


def ids_of(out: AnyPath, shard: AnyShard) -> NDArray[np.int64] | None:
    """The ids of a shard's samples from its index, None if its tar or its index is missing or another shard's."""
    path = out / shard.file
    try:
        records, size = load_array(index_path(path)), file_size(path)
    except (FileNotFoundError, DamagedArrayError):
        return None
    is_whole = records.dtype == RECORD and records.shape == (shard.samples,) and size == shard.bytes
    return np.array(records["id"]) if is_whole else None


def pack_shard(job: Job) -> AnyReport:
    """Write one shard, its index and its report; returns the report, shortened.

    Raises OSError naming a file that cannot be written; no half-written file stays.
    """
    cv2.setNumThreads(0)  # each core packs one shard; threads within an image would only wait for each other
    path, schema = job.out / job.file, job.schema
    remove(report_path(path))  # an older report must never describe the new tar
    tokenizer = _load_tokenizer(job.words, job.recipe.vocabulary_sha256, not job.recipe.tokenizer_sha256)
    columns = {label: number for number, label in enumerate(label_ids(schema))}
    records: list[tuple[int, int, int, int, int]] = []
    labels, notes = [0] * len(columns), ImageNotes()
    digest = hashlib.sha256()
    offset = 0
    with atomic_file(path) as file, open(job.lines, encoding="utf-8") as lines:
        for sample, images in _with_images((read_line(json.loads(line), schema) for line in lines), job):
            if not _note(notes, sample, images, job):
                continue
            members, has, length = members_of(sample, schema, images, tokenizer)
            data = tar_of(sample.key, members)
            file.write(data)
            digest.update(data)
            records.append((sample.number, offset, len(data), length, has))
            offset += len(data)
            for label in sample.labels:
                labels[columns[label]] += 1
        file.write(tar.END)
        digest.update(tar.END)
    index = np.array(records, RECORD)
    with atomic_file(index_path(path)) as file:
        save_array(index, file)
    kind = shard_kind(schema)
    shard = kind(
        file=job.file,
        split=job.split,
        samples=len(index),
        **kind.counted(index["has"]),
        bytes=offset + len(tar.END),
        sha256=digest.hexdigest(),
    )
    left_out = dict(notes.left_out)
    report = report_kind(schema).of(labels, notes, key=job.key, recipe=job.recipe, shard=shard, left_out=left_out)
    save_report(report, path)
    return shortened(report)


@lru_cache(maxsize=1)
def _load_tokenizer(path: Path, sha256: str, is_vocabulary: bool) -> Tokenizer:
    """What makes tokens, read once by each worker; the checksum distinguishes two files of one name."""
    return WordTokenizer(load_words(path)) if is_vocabulary else PieceTokenizer(path.read_bytes(), path)


class Outcome(NamedTuple):
    """The result of packing an image."""

    jpeg: bytes | None
    kind: str
    """RESIZED, UNTOUCHED, ODD, UNREADABLE or NO_IMAGE: the kinds that a report counts."""
    note: str = ""
    """The note of `load_rgb` on an odd file, or the name of an unreadable file and its fault."""
    reason: str = NO_PICTURE
    """The reason under which a sample without a readable image is left out."""


def _note(notes: ImageNotes, sample: Line, images: dict[str, Outcome], job: Job) -> bool:
    """Note what became of a sample's images; False if it is left out for a required one that cannot be read."""
    lost = [name for name, image in images.items() if image.kind == UNREADABLE and name in job.recipe.require]
    for name, image in images.items():
        note = image.note if job.schema == TMDB else f"{name}: {image.note}"
        notes.kinds[image.kind] += 1
        if image.kind == ODD:
            notes.odd.append((sample.id, note))
        elif image.kind == UNREADABLE:
            notes.problems.append((sample.id, note, bool(lost)))
    if lost:
        notes.left_out[images[lost[0]].reason.format(lost[0])] += 1
    return not lost


def members_of(
    sample: Line, schema: Schema, images: dict[str, Outcome], tokenizer: Tokenizer
) -> tuple[dict[str, bytes], int, int]:
    """A sample's members by extension, the bits of its fields, and the length of its longest text in tokens."""
    members = {"json": json.dumps(sample.about, ensure_ascii=False).encode()}
    has = longest = 0
    for field in schema.fields:
        value = sample.fields[field.name]
        data: bytes | None = None
        if field.kind == "image":
            data = images[field.name].jpeg
        elif value is not None and field.kind == "text":
            tokens = tokenizer.encode(value)
            data, longest = tokens_member(tokens), max(longest, min(len(tokens), LONGEST_COUNTED))
        elif value is not None:
            data = array_bytes(np.array(value, np.float32))
        if data is not None:
            members[field.extension] = data
            has |= schema.bit(field.name)
    return members, has, longest


def _with_images(samples: Iterable[Line], job: Job) -> Iterator[tuple[Line, dict[str, Outcome]]]:
    """Each sample with its image fields as JPEGs of the shards' shape.

    Remote files are requested for READ_AHEAD samples at a time.
    """
    if not is_remote(job.catalogue):
        yield from ((sample, _packed(sample, _read(sample, job), job)) for sample in samples)
        return
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for sample, files in outcomes(pool, partial(_read, job=job), samples, READ_AHEAD, in_order=True):
            yield sample, _packed(sample, files.result(), job)


def _read(sample: Line, job: Job) -> dict[str, bytes | OSError | None]:
    """Image field -> the bytes of its file, or the error on opening it; None for a sample without the image."""
    names = [field.name for field in job.schema.fields if field.kind == "image"]
    return {name: None if sample.fields[name] is None else _read_image(_path(sample, name, job)) for name in names}


def _path(sample: Line, field: str, job: Job) -> AnyPath:
    return image_path(job.catalogue, job.schema, field, sample.number)


def _read_image(path: AnyPath) -> bytes | OSError:
    """The bytes of a file, or the error on opening it; all other errors are raised."""
    try:
        if isinstance(path, Path) and path.stat().st_size > MAX_BYTES:
            return OSError(errno.EFBIG, f"more than {MAX_BYTES:,} bytes")
        return read_bytes(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return error


def _packed(sample: Line, files: dict[str, bytes | OSError | None], job: Job) -> dict[str, Outcome]:
    return {name: _outcome(data, _path(sample, name, job), job.recipe) for name, data in files.items()}


def _outcome(data: bytes | OSError | None, path: AnyPath, recipe: Recipe) -> Outcome:
    if data is None:
        return Outcome(None, NO_IMAGE)
    if isinstance(data, FileNotFoundError):
        return Outcome(None, UNREADABLE, f"{path} is missing", NO_FILE)
    if isinstance(data, OSError):
        return Outcome(None, UNREADABLE, f"{path}: {data.strerror}", NOT_OPENED)
    try:
        jpeg, odd = square_jpeg(data, recipe.size, recipe.fit, recipe.quality)
    except ValueError as error:
        return Outcome(None, UNREADABLE, f"{path}: {error}")
    return Outcome(jpeg, odd if odd == UNTOUCHED else ODD if odd else RESIZED, odd)


def tar_of(key: str, members: dict[str, bytes]) -> bytes:
    """The members (extension -> content) of one sample as bytes of a tar."""
    blocks = []
    for extension, data in members.items():
        blocks += [tar.header(f"{key}.{extension}", len(data)), data, bytes(tar.padded(len(data)) - len(data))]
    return b"".join(blocks)


def tokens_member(tokens: NDArray[np.int32]) -> bytes:
    """A text as np.save writes it."""
    return _array_head(len(tokens)) + tokens.tobytes()


@lru_cache(maxsize=4096)
def _array_head(length: int) -> bytes:
    """The header that np.save writes for an int32 [length]."""
    buffer = io.BytesIO()
    save_array(np.empty(length, np.int32), buffer)
    return buffer.getvalue()[: -4 * length] if length else buffer.getvalue()
