"""A catalogue -> shards: choose the films, make the vocabulary, pack shard by shard over a process pool.

The films pass by twice as a stream: once for their ids and words, once to lay each shard's films into a file of its
own. Only ids and word counts stay in memory. A killed pack leaves finished shards and continues where it stopped.
"""

import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.acquire.catalogue import read_rows
from genre_dist.atomic import atomic_file
from genre_dist.genres import GENRES, INDEX_OF_ID
from genre_dist.prepare.shard import Job, Recipe, finished, pack_shard, report_path
from genre_dist.prepare.splits import RULE, order_key, split_of
from genre_dist.prepare.vocabulary import choose_words, matrix_for, read_vectors, save_words, tokenise, words_sha256
from genre_dist.progress import progress_bar
from genre_dist.stream.index import index_path
from genre_dist.stream.manifest import FILE, SPLITS, Manifest, Shard, save_manifest

COLUMNS = ["tmdb_id", "title", "overview", "genre_ids", "release_date", "poster_status", "poster_sha256"]
_WORK = ".packing"


class Chosen(NamedTuple):
    """Which shard each film goes to, and what was learned on the way."""

    shard_of: dict[int, int]
    """tmdb_id -> number of its shard."""
    shards: list[tuple[str, str]]
    """(file, split) of each shard."""
    counts: Counter[str]
    """Words of the train split."""
    left_out: Counter[str]


def pack(
    catalogue: Path,
    out: Path,
    *,
    vectors: Path | None = None,
    require: tuple[str, ...] = ("poster", "overview"),
    text: str = "overview",
    size: int = 256,
    fit: Any = "squash",
    quality: int = 90,
    shard_size: int = 1000,
    workers: int = 1,
    overwrite: bool = False,
) -> Manifest:
    """Pack a catalogue into `out` and return the manifest.

    Raises ValueError for wrong options, for shards of another recipe in `out` (unless `overwrite`), and for a catalogue
    without a film to pack; OSError if the disk is full. What was finished stays, and the same command goes on.
    """
    _check(require, text, size, shard_size)
    recipe = Recipe(require=require, text=text, size=size, fit=fit, quality=quality, shard_size=shard_size)
    if overwrite:
        _remove_shards(out)
    out.mkdir(parents=True, exist_ok=True)
    chosen = _choose(catalogue, recipe)
    if not chosen.shard_of:
        raise ValueError(
            f"{catalogue}: no film to pack ({_reasons(chosen.left_out)}); require less with --require, or import more"
        )
    words, matrix = _vocabulary(chosen.counts, vectors)
    recipe = replace(recipe, vocabulary_sha256=words_sha256(words))
    work = out / _WORK
    try:
        jobs = _lay_out(catalogue, out, recipe, chosen, work)
        _refuse_other_shards(out, jobs)
        save_words(words, out / "vocabulary.txt")
        _save_vectors(matrix, out / "vectors.npy")
        reports = _run(jobs, workers)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    manifest = _manifest(out, recipe, words, matrix, chosen, reports)
    save_manifest(manifest)
    return manifest


def _check(require: tuple[str, ...], text: str, size: int, shard_size: int) -> None:
    unknown = set(require) - {"poster", "overview"}
    if unknown:
        raise ValueError(f"--require knows poster and overview, not {', '.join(sorted(unknown))}")
    if text not in ("overview", "title", "both"):
        raise ValueError(f"--text is overview, title or both, not {text}")
    if size < 1 or shard_size < 1:
        raise ValueError("--size and --shard_size must be at least 1")


def film_text(row: dict[str, Any], text: str) -> str:
    """The text a film is trained on: its overview, its title, or the title followed by the overview."""
    parts = {"overview": [row["overview"]], "title": [row["title"]], "both": [row["title"], row["overview"]]}[text]
    return " ".join(part.strip() for part in parts if part)


def _why_not(row: dict[str, Any], require: tuple[str, ...]) -> str | None:
    """Why a film is left out, or None."""
    if not any(genre in INDEX_OF_ID for genre in row["genre_ids"] or ()):
        return "no known genre"
    if "poster" in require and row["poster_status"] != "ok":
        return "no poster"
    if "overview" in require and not (row["overview"] or "").strip():
        return "no overview"
    return None


def _choose(catalogue: Path, recipe: Recipe) -> Chosen:
    """First pass: the films to pack, in which shard each goes, and the words of the train split."""
    ids: dict[str, list[int]] = {split: [] for split in SPLITS}
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for row in read_rows(catalogue, COLUMNS):
        reason = _why_not(row, recipe.require)
        if reason:
            left_out[reason] += 1
            continue
        split = split_of(row["tmdb_id"])
        ids[split].append(row["tmdb_id"])
        if split == "train":  # words of val and test would tell something of them
            counts.update(tokenise(f"{row['title'] or ''} {row['overview'] or ''}"))
    shard_of: dict[int, int] = {}
    shards: list[tuple[str, str]] = []
    for split in SPLITS:
        ordered = sorted(ids[split], key=order_key)
        for number, film in enumerate(ordered):
            if number % recipe.shard_size == 0:
                shards.append((f"{split}-{number // recipe.shard_size:06d}.tar", split))
            shard_of[film] = len(shards) - 1
    return Chosen(shard_of, shards, counts, left_out)


def _vocabulary(counts: Counter[str], vectors: Path | None) -> tuple[list[str], NDArray[np.float32] | None]:
    """The words, and a vector for each if there is a file of vectors."""
    if vectors is None:
        return choose_words(counts), None
    found = read_vectors(vectors, counts)
    if not found:
        raise ValueError(f"{vectors}: none of the {len(counts):,} words of the train split is in this file")
    words = choose_words(counts, found)
    return words, matrix_for(words, found)


def _save_vectors(matrix: NDArray[np.float32] | None, path: Path) -> None:
    if matrix is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_file(path) as file:
            np.save(file, matrix)


def _lay_out(catalogue: Path, out: Path, recipe: Recipe, chosen: Chosen, work: Path) -> list[Job]:
    """Second pass: each shard's films into a file of its own, in the order of the shard."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    buffers: dict[int, list[str]] = {}
    held = 0
    for film in _films(catalogue, recipe, chosen):
        buffers.setdefault(chosen.shard_of[film["tmdb_id"]], []).append(json.dumps(film, ensure_ascii=False))
        held += 1
        if held >= 20_000:  # bounds memory; appending in groups spares opening a file for every film
            _flush(buffers, work)
            held = 0
    _flush(buffers, work)
    jobs = []
    for number, (file, split) in enumerate(chosen.shards):
        path = work / f"{number}.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        lines.sort(key=lambda line: order_key(json.loads(line)["tmdb_id"]))
        data = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        jobs.append(
            Job(out=out, file=file, split=split, catalogue=catalogue, films=path, films_sha256=digest, recipe=recipe)
        )
    return jobs


def _films(catalogue: Path, recipe: Recipe, chosen: Chosen) -> Iterator[dict[str, Any]]:
    for row in read_rows(catalogue, COLUMNS):
        if row["tmdb_id"] in chosen.shard_of:
            yield {
                "tmdb_id": row["tmdb_id"],
                "title": row["title"] or "",
                "genre_ids": [genre for genre in row["genre_ids"] if genre in INDEX_OF_ID],
                "release_date": row["release_date"] or "",
                "text": film_text(row, recipe.text),
                "poster": row["poster_sha256"] if row["poster_status"] == "ok" else None,
            }


def _flush(buffers: dict[int, list[str]], work: Path) -> None:
    for number, lines in buffers.items():
        with open(work / f"{number}.jsonl", "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    buffers.clear()


def _refuse_other_shards(out: Path, jobs: list[Job]) -> None:
    """A folder of finished shards is only continued, never mixed with shards of another recipe."""
    wanted = {job.file for job in jobs}
    strangers = sorted({path.name for path in out.glob("*.tar")} - wanted)
    changed = [job.file for job in jobs if report_path(out / job.file).is_file() and not finished(job)]
    if (strangers or changed) and (out / FILE).is_file():
        raise ValueError(
            f"{out} already holds shards of other films or options ({(changed + strangers)[0]} differs); pack into "
            "another folder, or pass --overwrite to replace them"
        )


def _run(jobs: list[Job], workers: int) -> list[dict[str, Any]]:
    """Pack what is not finished yet; returns all reports in the order of the jobs."""
    reports = {job.file: report for job in jobs if (report := finished(job))}
    todo = [job for job in jobs if job.file not in reports]
    try:
        with progress_bar() as progress:
            task = progress.add_task("packing shards", total=len(jobs), completed=len(reports))
            for job, report in _packed(todo, workers):
                reports[job.file] = report
                progress.advance(task)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"no space left to write shards; {len(reports)} of {len(jobs)} are finished and stay. Free some space and "
            "run the same command again",
        ) from None
    return [reports[job.file] for job in jobs]


def _packed(jobs: list[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Shards as they get finished, on several processes if there are several shards."""
    if workers <= 1 or len(jobs) <= 1:
        yield from ((job, pack_shard(job)) for job in jobs)
        return
    # spawn: a fork would copy the locks of whatever threads this process has
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(pack_shard, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _manifest(
    out: Path,
    recipe: Recipe,
    words: list[str],
    matrix: NDArray[np.float32] | None,
    chosen: Chosen,
    reports: list[dict[str, Any]],
) -> Manifest:
    counts = {split: np.zeros(len(GENRES), int) for split in SPLITS}
    left_out = Counter(chosen.left_out)
    for report in reports:
        counts[report["shard"]["split"]] += report["genre_counts"]
        left_out.update(report["left_out"])
    return Manifest(
        folder=out,
        genres=GENRES,
        image={"size": recipe.size, "fit": recipe.fit, "quality": recipe.quality},
        text={
            "source": recipe.text,
            "vocabulary": "vocabulary.txt",
            "words": len(words),
            "vocabulary_sha256": recipe.vocabulary_sha256,
            "vectors": None if matrix is None else "vectors.npy",
            "dim": None if matrix is None else matrix.shape[1],
        },
        require=recipe.require,
        split_rule=RULE,
        genre_counts={split: count.tolist() for split, count in counts.items()},
        left_out=dict(sorted(left_out.items())),
        shards=tuple(Shard(**report["shard"]) for report in reports),
    )


def _remove_shards(out: Path) -> None:
    (out / FILE).unlink(missing_ok=True)
    for path in out.glob("*.tar"):
        for old in (report_path(path), index_path(path), path):
            old.unlink(missing_ok=True)


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{count:,} with {reason}" for reason, count in left_out.most_common()) or "it is empty"
