"""One shard: films in, a tar, its index and a report out, all or nothing."""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.acquire.catalogue import poster_file
from genre_dist.atomic import atomic_file
from genre_dist.genres import INDEX_OF_ID
from genre_dist.prepare.members import sample
from genre_dist.prepare.posters import UNTOUCHED, Fit, square_jpeg
from genre_dist.prepare.vocabulary import encode, load_words, tokenise
from genre_dist.storage import Place, exists, has_size, is_remote, read_bytes, remove
from genre_dist.stream import tar
from genre_dist.stream.index import OVERVIEW, POSTER, RECORD, index_path, save_array
from genre_dist.stream.manifest import Shard

READ_AHEAD = 16
"""Posters asked for at a time, where the catalogue is remote."""
RESIZED, ODD, UNREADABLE, NO_POSTER = "resized", "odd", "unreadable", "none"


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
    """A report without its lists of odd and unreadable posters: with all shards', memory would grow with the films."""
    return {name: value for name, value in report.items() if name not in ("problems", "odd")}


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
    odd: list[dict[str, Any]] = []
    outcomes: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    digest = hashlib.sha256()
    offset = 0
    with atomic_file(path) as file, open(job.films, encoding="utf-8") as films:
        for film, (poster, outcome, note) in _with_posters(map(json.loads, films), job):
            outcomes[outcome] += 1
            if outcome == ODD:
                odd.append({"tmdb_id": film["tmdb_id"], "odd": note})
            elif outcome == UNREADABLE:
                problems.append({"tmdb_id": film["tmdb_id"], "problem": note})
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
        "posters": dict(sorted(outcomes.items())),
        "odd": odd,
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


class Outcome(NamedTuple):
    """What became of a poster."""

    jpeg: bytes | None
    kind: str
    """One of RESIZED, UNTOUCHED, ODD, UNREADABLE and NO_POSTER: what a report counts."""
    note: str
    """What was odd about the file (`load_rgb` says it), or the file's name and what is wrong with it."""


def _with_posters(films: Iterable[dict[str, Any]], job: Job) -> Iterator[tuple[dict[str, Any], Outcome]]:
    """Each film with its poster as a JPEG of the shards' shape."""
    recipe = job.recipe
    for film, path, data in _with_files(films, job):
        if path is None:
            yield film, Outcome(None, NO_POSTER, "")
        elif data is None:
            yield film, Outcome(None, UNREADABLE, f"{path} is missing")
        else:
            try:
                jpeg, odd = square_jpeg(data, recipe.size, recipe.fit, recipe.quality)
            except ValueError as error:
                yield film, Outcome(None, UNREADABLE, f"{path}: {error}")
            else:
                kind = odd if odd == UNTOUCHED else ODD if odd else RESIZED
                yield film, Outcome(jpeg, kind, odd)


def _with_files(
    films: Iterable[dict[str, Any]], job: Job
) -> Iterator[tuple[dict[str, Any], Place | None, bytes | None]]:
    """Each film with its poster's file, None without one, and its bytes, None if it is missing.

    Remote files are asked for READ_AHEAD at a time.
    """

    def read(path: Place | None) -> bytes | None:
        try:
            return None if path is None else read_bytes(path)
        except FileNotFoundError:
            return None

    placed = ((film, None if film["poster"] is None else poster_file(job.catalogue, film["tmdb_id"])) for film in films)
    if not is_remote(job.catalogue):
        yield from ((film, path, read(path)) for film, path in placed)
        return
    coming: deque[tuple[dict[str, Any], Place | None, Future[bytes | None]]] = deque()
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for film, path in placed:
            coming.append((film, path, pool.submit(read, path)))
            if len(coming) > READ_AHEAD:
                first, first_path, data = coming.popleft()
                yield first, first_path, data.result()
        yield from ((film, path, data.result()) for film, path, data in coming)
