"""One shard: films in, a tar, its index and a report out, all or nothing."""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.acquire.catalogue import poster_file
from genre_dist.atomic import atomic_file
from genre_dist.genres import INDEX_OF_ID
from genre_dist.prepare.members import sample
from genre_dist.prepare.posters import Fit, square_jpeg
from genre_dist.prepare.vocabulary import encode, load_words, tokenise
from genre_dist.storage import Place, exists, has_size, is_remote, read_bytes, remove
from genre_dist.stream import tar
from genre_dist.stream.index import OVERVIEW, POSTER, RECORD, index_path, save_array
from genre_dist.stream.manifest import Shard

READ_AHEAD = 16
"""Posters asked for at a time, where the catalogue is remote."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a shard's bytes, beside its films. ValueError for a value that makes no sense."""

    require: tuple[str, ...] = ("poster", "overview")
    text: str = "overview"
    size: int = 256
    fit: Fit = "squash"
    quality: int = 90
    shard_size: int = 1000
    vectors_sha256: str = ""
    """Of the file of word vectors, '' without one: it decides which words seen once are kept."""
    vocabulary_sha256: str = ""

    def __post_init__(self) -> None:
        unknown = set(self.require) - {"poster", "overview"}
        if unknown:
            raise ValueError(f"--require knows poster and overview, not {', '.join(sorted(unknown))}")
        if self.text not in ("overview", "title", "both"):
            raise ValueError(f"--text is overview, title or both, not {self.text}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"--fit is {', '.join(get_args(Fit))}, not {self.fit}")
        if not 1 <= self.size <= 4096 or self.shard_size < 1:
            raise ValueError("--size goes from 1 to 4096, --shard_size is at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality goes from 1 to 100, not {self.quality}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to be packed: its films lie in `films`, a file of JSON lines in the order of the shard."""

    out: Place
    file: str
    split: str
    catalogue: Place
    films: Path
    films_sha256: str
    words: Path
    """The vocabulary."""
    recipe: Recipe


def report_path(shard: Place) -> Place:
    """The shard's report, written last: a shard without one is not finished."""
    return shard.with_suffix(".report.json")


def recipe_key(job: Job) -> str:
    """Identifies what the shard's bytes should be; a finished shard with the same key is left alone."""
    told = json.dumps([asdict(job.recipe), job.split, job.films_sha256], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def finished(job: Job) -> dict[str, Any] | None:
    """The report of a shard that is already packed from the same films in the same way, else None."""
    path = job.out / job.file
    report = read_report(path)
    if report is None or report["key"] != recipe_key(job) or not exists(index_path(path)):
        return None
    return without_problems(report) if has_size(path, report["shard"]["bytes"]) else None


def read_report(shard: Place) -> dict[str, Any] | None:
    """A shard's report, None if it has none that can be read."""
    try:
        return json.loads(read_bytes(report_path(shard)))
    except (FileNotFoundError, ValueError):
        return None


def without_problems(report: dict[str, Any]) -> dict[str, Any]:
    """A report without its list of unreadable posters: with those of all shards, memory would grow with the films."""
    return {name: value for name, value in report.items() if name != "problems"}


@lru_cache(maxsize=1)
def _load_words(path: Path, sha256: str) -> dict[str, int]:
    """The vocabulary, read once by each worker; its checksum tells two of one name apart."""
    return load_words(path)


def pack_shard(job: Job) -> dict[str, Any]:
    """Write one shard, its index and its report; returns the report without its problems.

    Raises OSError with the file's name if it cannot be written; nothing half-written stays.
    """
    cv2.setNumThreads(0)  # a shard is the work of one core; threads for a single poster would only wait for each other
    path = job.out / job.file
    remove(report_path(path))  # an older shard's must never stand beside the new tar
    words = _load_words(job.words, job.recipe.vocabulary_sha256)
    records: list[tuple[int, int, int, int, int]] = []
    genres = [0] * len(INDEX_OF_ID)
    problems: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    digest = hashlib.sha256()
    offset = 0
    with atomic_file(path) as file, open(job.films, encoding="utf-8") as films:
        for film, poster, problem in _with_posters(map(json.loads, films), job):
            if problem:
                problems.append({"tmdb_id": film["tmdb_id"], "problem": problem})
                if "poster" in job.recipe.require:
                    left_out["unreadable poster"] += 1
                    continue
            tokens = encode(tokenise(film["text"]), words) if film["text"].strip() else None
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
    report = {
        "key": recipe_key(job),
        "recipe": asdict(job.recipe),
        "shard": asdict(_shard(job, index, offset + len(tar.END), digest.hexdigest())),
        "genre_counts": genres,
        "left_out": dict(left_out),
        "problems": problems,
    }
    with atomic_file(report_path(path), "w") as file:
        json.dump(report, file, indent=1)
    return without_problems(report)


def _shard(job: Job, index: NDArray[np.void], size: int, sha256: str) -> Shard:
    """What the manifest will tell of a tar of `size` bytes; index: RECORD [samples]."""
    return Shard(
        file=job.file,
        split=job.split,
        samples=len(index),
        poster=int(((index["has"] & POSTER) > 0).sum()),
        overview=int(((index["has"] & OVERVIEW) > 0).sum()),
        both=int((index["has"] == POSTER | OVERVIEW).sum()),
        bytes=size,
        sha256=sha256,
    )


def _with_posters(
    films: Iterable[dict[str, Any]], job: Job
) -> Iterator[tuple[dict[str, Any], bytes | None, str | None]]:
    """Each film with its poster as a JPEG of the shards' shape, or what is wrong with it; both None without one."""
    for film, data in _with_files(films, job):
        if film["poster"] is None:
            yield film, None, None
            continue
        path = poster_file(job.catalogue, film["tmdb_id"])
        if data is None:
            yield film, None, f"{path} is missing"
            continue
        try:
            yield film, square_jpeg(data, job.recipe.size, job.recipe.fit, job.recipe.quality), None
        except ValueError as error:
            yield film, None, f"{path}: {error}"


def _with_files(films: Iterable[dict[str, Any]], job: Job) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """Each film with the file of its poster, None if there is none; remote ones are asked for READ_AHEAD at a time."""

    def read(film: dict[str, Any]) -> bytes | None:
        try:
            return None if film["poster"] is None else read_bytes(poster_file(job.catalogue, film["tmdb_id"]))
        except FileNotFoundError:
            return None

    if not is_remote(job.catalogue):
        yield from ((film, read(film)) for film in films)
        return
    coming: deque[tuple[dict[str, Any], Future[bytes | None]]] = deque()
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for film in films:
            coming.append((film, pool.submit(read, film)))
            if len(coming) > READ_AHEAD:
                first, data = coming.popleft()
                yield first, data.result()
        yield from ((film, data.result()) for film, data in coming)
