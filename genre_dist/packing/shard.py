"""Packing of one shard: films -> a tar, its index and a report, which is written last."""

import errno
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.catalogue.catalogue import poster_file
from genre_dist.genres import INDEX_OF_ID
from genre_dist.packing.posters import MAX_BYTES, UNTOUCHED, square_jpeg
from genre_dist.packing.shard_report import (
    NO_FILE,
    NO_PICTURE,
    NO_POSTER,
    NOT_OPENED,
    ODD,
    RESIZED,
    UNREADABLE,
    Odd,
    Report,
    UnusablePoster,
    read_report,
    recipe_key,
    report_path,
    save_report,
    shortened,
)
from genre_dist.packing.tokenizer import PieceTokenizer, Tokenizer, WordTokenizer
from genre_dist.packing.vocabulary import load_words
from genre_dist.storage import AnyPath, file_size, is_remote, read_bytes, remove
from genre_dist.stream import tar
from genre_dist.stream.index import OVERVIEW, POSTER, RECORD, DamagedArrayError, index_path, load_array, save_array
from genre_dist.stream.manifest import Shard
from genre_dist.stream.sample_manifest import SampleShard
from genre_dist.workers import outcomes

READ_AHEAD = 16
"""Posters requested at a time from a remote catalogue."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to pack: `films` is a file of JSON lines, the shard's films in order."""

    out: AnyPath
    file: str
    split: str
    catalogue: AnyPath
    films: Path
    films_sha256: str
    words: Path
    """The vocabulary's or the tokenizer's file."""
    recipe: Any
    """A Recipe, or that of a declared data set."""


def finished(job: Job, kind: type = Report) -> Any:
    """The shortened report of a shard that is already packed from the same films by the same recipe, else None."""
    report = read_report(job.out / job.file, kind, damaged_is_none=True)
    if report is None or report.key != key_of(job) or films_of(job.out, report.shard) is None:
        return None
    return shortened(report)


def key_of(job: Job) -> str:
    """The key in the report of a shard that is packed as this job says."""
    return recipe_key(job.recipe, job.split, job.films_sha256)


def films_of(out: AnyPath, shard: Shard | SampleShard) -> NDArray[np.int64] | None:
    """The ids of a shard's films from its index, None if its tar or its index is missing or another shard's."""
    path = out / shard.file
    try:
        records, size = load_array(index_path(path)), file_size(path)
    except (FileNotFoundError, DamagedArrayError):
        return None
    is_whole = records.dtype == RECORD and records.shape == (shard.samples,) and size == shard.bytes
    return np.array(records["id"]) if is_whole else None


def tokenizer_for(job: Job) -> Tokenizer:
    """What makes a job's tokens, read once by each worker."""
    return _load_tokenizer(job.words, job.recipe.vocabulary_sha256, not job.recipe.tokenizer_sha256)


@lru_cache(maxsize=1)
def _load_tokenizer(path: Path, sha256: str, is_vocabulary: bool) -> Tokenizer:
    """The checksum distinguishes two files of one name."""
    return WordTokenizer(load_words(path)) if is_vocabulary else PieceTokenizer(path.read_bytes(), path)


def pack_shard(job: Job) -> Report:
    """Write one shard, its index and its report; returns the report, shortened.

    Raises OSError naming a file that cannot be written; no half-written file stays.
    """
    cv2.setNumThreads(0)  # each core packs one shard; threads within a poster would only wait for each other
    path = job.out / job.file
    remove(report_path(path))  # an older report must never describe the new tar
    tokenizer = tokenizer_for(job)
    records: list[tuple[int, int, int, int, int]] = []
    genres = [0] * len(INDEX_OF_ID)
    problems: list[UnusablePoster] = []
    odd: list[Odd] = []
    kinds: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    digest = hashlib.sha256()
    offset = 0
    with atomic_file(path) as file, open(job.films, encoding="utf-8") as films:
        for film, (poster, kind, note, reason) in _with_posters(map(json.loads, films), job):
            kinds[kind] += 1
            if kind == ODD:
                odd.append({"tmdb_id": film["tmdb_id"], "odd": note})
            elif kind == UNREADABLE:
                problems.append({"tmdb_id": film["tmdb_id"], "problem": note})
                if "poster" in job.recipe.require:
                    left_out[reason] += 1
                    continue
            tokens = tokenizer.encode(film["text"]) if film["text"].strip() else None
            data = sample(film, poster, tokens)
            file.write(data)
            digest.update(data)
            has = POSTER * (poster is not None) | OVERVIEW * (tokens is not None)
            length = 0 if tokens is None else min(len(tokens), 65_535)
            records.append((film["tmdb_id"], offset, len(data), length, has))
            offset += len(data)
            for genre in film["genre_ids"]:
                genres[INDEX_OF_ID[genre]] += 1
        file.write(tar.END)
        digest.update(tar.END)
    index = np.array(records, RECORD)
    with atomic_file(index_path(path)) as file:
        save_array(index, file)
    report = Report(
        key=key_of(job),
        recipe=job.recipe,
        shard=_shard(job, index, offset + len(tar.END), digest.hexdigest()),
        genre_counts=genres,
        left_out=dict(left_out),
        posters=dict(sorted(kinds.items())),
        odd=odd,
        problems=problems,
    )
    save_report(report, path)
    return shortened(report)


def _shard(job: Job, index: NDArray[np.void], size: int, sha256: str) -> Shard:
    """The manifest's entry for a tar of `size` bytes; index: RECORD [samples]."""
    return Shard(
        file=job.file,
        split=job.split,
        samples=len(index),
        **Shard.counted(index["has"]),
        bytes=size,
        sha256=sha256,
    )


class Outcome(NamedTuple):
    """The result of packing a poster."""

    jpeg: bytes | None
    kind: str
    """RESIZED, UNTOUCHED, ODD, UNREADABLE or NO_POSTER: the kinds that a report counts."""
    note: str
    """The note of `load_rgb` on an odd file, or the name of an unreadable file and its fault."""
    reason: str = NO_PICTURE
    """The reason under which a film without a readable poster is left out."""


def _with_posters(films: Iterable[dict[str, Any]], job: Job) -> Iterator[tuple[dict[str, Any], Outcome]]:
    """Each film with its poster as a JPEG of the shards' shape. Remote files are requested READ_AHEAD at a time."""
    if not is_remote(job.catalogue):
        yield from ((film, _outcome(film, _read(film, job), job)) for film in films)
        return
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for film, data in outcomes(pool, partial(_read, job=job), films, READ_AHEAD, in_order=True):
            yield film, _outcome(film, data.result(), job)


def _read(film: dict[str, Any], job: Job) -> bytes | OSError | None:
    """The bytes of a film's poster, or the error on opening it; None without a poster."""
    return None if film["poster"] is None else read_image(poster_file(job.catalogue, film["tmdb_id"]))


def read_image(path: AnyPath) -> bytes | OSError:
    """The bytes of a file, or the error on opening it; all other errors are raised."""
    try:
        if isinstance(path, Path) and path.stat().st_size > MAX_BYTES:
            return OSError(errno.EFBIG, f"more than {MAX_BYTES:,} bytes")
        return read_bytes(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return error


def _outcome(film: dict[str, Any], data: bytes | OSError | None, job: Job) -> Outcome:
    return outcome_of(poster_file(job.catalogue, film["tmdb_id"]), data, job.recipe)


def outcome_of(path: AnyPath, data: bytes | OSError | None, recipe: Any) -> Outcome:
    """What becomes of an image by a recipe's `size`, `fit` and `quality`; `data` as `_read` has it."""
    if data is None:
        return Outcome(None, NO_POSTER, "")
    if isinstance(data, FileNotFoundError):
        return Outcome(None, UNREADABLE, f"{path} is missing", NO_FILE)
    if isinstance(data, OSError):
        return Outcome(None, UNREADABLE, f"{path}: {data.strerror}", NOT_OPENED)
    try:
        jpeg, odd = square_jpeg(data, recipe.size, recipe.fit, recipe.quality)
    except ValueError as error:
        return Outcome(None, UNREADABLE, f"{path}: {error}")
    return Outcome(jpeg, odd if odd == UNTOUCHED else ODD if odd else RESIZED, odd)


def sample(film: dict[str, Any], poster: bytes | None, tokens: NDArray[np.int32] | None) -> bytes:
    """The members of one film as bytes of a tar, in the order json, jpg, tokens.npy."""
    key = str(film["tmdb_id"])
    about = {name: film[name] for name in ("tmdb_id", "title", "genre_ids", "release_date")}
    members = {"json": json.dumps(about, ensure_ascii=False).encode()}
    if poster is not None:
        members["jpg"] = poster
    if tokens is not None:
        members["tokens.npy"] = tokens_member(tokens)
    return tar_of(key, members)


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
