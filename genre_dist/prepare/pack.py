"""A catalogue -> shards: choose the films, make the vocabulary, pack shard by shard over a process pool.

The films pass by twice as a stream: once for their ids and words, once to lay each shard's films into a file of its
own. Only ids and word counts stay in memory. A killed pack leaves finished shards and continues where it stopped.
"""

import errno
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from genre_dist.acquire.catalogue import read_rows
from genre_dist.atomic import atomic_file
from genre_dist.genres import GENRES, INDEX_OF_ID
from genre_dist.prepare.shard import Fit, Job, Recipe, finished, pack_shard, read_report, recipe_key, report_path
from genre_dist.prepare.splits import RULE, order_key, split_of
from genre_dist.prepare.vocabulary import choose_words, matrix_for, read_vectors, save_words, tokenise, words_sha256
from genre_dist.progress import progress_bar
from genre_dist.stream.index import index_path, save_array
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
    recipe = Recipe(require=require, text=text, size=size, fit=fit, quality=quality, shard_size=shard_size)
    _check(recipe)
    chosen = _choose(catalogue, recipe)
    if not chosen.shard_of:
        raise ValueError(
            f"{catalogue}: no film to pack ({_reasons(chosen.left_out)}); require less with --require, or import more"
        )
    words, matrix = _vocabulary(chosen.counts, vectors)
    recipe = replace(recipe, vocabulary_sha256=words_sha256(words))
    work = out / _WORK
    try:
        out.mkdir(parents=True, exist_ok=True)
        jobs = _lay_out(catalogue, out, recipe, chosen, work)
        if not overwrite:
            _refuse_other_shards(out, jobs)
        _remove_old(out, jobs, overwrite)
        save_words(words, out / "vocabulary.txt")
        _save_vectors(matrix, out / "vectors.npy")
        reports = _run(jobs, workers)
        manifest = _manifest(out, recipe, words, matrix, chosen, reports)
        save_manifest(manifest)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"no space left to write shards into {out}; those that are finished stay. Free some space and run the same "
            "command again",
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _check(recipe: Recipe) -> None:
    unknown = set(recipe.require) - {"poster", "overview"}
    if unknown:
        raise ValueError(f"--require knows poster and overview, not {', '.join(sorted(unknown))}")
    if recipe.text not in ("overview", "title", "both"):
        raise ValueError(f"--text is overview, title or both, not {recipe.text}")
    if recipe.fit not in get_args(Fit):
        raise ValueError(f"--fit is {', '.join(get_args(Fit))}, not {recipe.fit}")
    if not 1 <= recipe.size <= 4096 or recipe.shard_size < 1:
        raise ValueError("--size goes from 1 to 4096, --shard_size is at least 1")
    if not 1 <= recipe.quality <= 100:
        raise ValueError(f"--quality goes from 1 to 100, not {recipe.quality}")


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
            if film in shard_of:
                raise ValueError(f"{catalogue}: the film {film} is there twice; make the catalogue again")
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
            save_array(matrix, file)


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
    reports = [(job, read_report(out / job.file)) for job in jobs]
    changed = [job.file for job, report in reports if report and report["key"] != recipe_key(job)]
    if (strangers or changed) and (out / FILE).is_file():
        raise ValueError(
            f"{out} already holds shards of other films or options ({(changed + strangers)[0]} differs); pack into "
            "another folder, or pass --overwrite to replace them"
        )


def _run(jobs: list[Job], workers: int) -> list[dict[str, Any]]:
    """Pack what is not finished yet; returns all reports in the order of the jobs."""
    reports = {job.file: report for job in jobs if (report := finished(job))}
    todo = [job for job in jobs if job.file not in reports]
    with progress_bar() as progress:
        task = progress.add_task("packing shards", total=len(jobs), completed=len(reports))
        for job, report in _packed(todo, workers):
            reports[job.file] = report
            progress.advance(task)
    return [reports[job.file] for job in jobs]


def _packed(jobs: list[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Shards as they get finished, on several processes if there are several shards."""
    if workers <= 1 or len(jobs) <= 1:
        yield from ((job, pack_shard(job)) for job in jobs)
        return
    # spawn: a fork would copy the locks of whatever threads this process has
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        waiting = {pool.submit(pack_shard, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed ends too; left alone it would go on writing, and then wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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


def _remove_old(out: Path, jobs: list[Job], overwrite: bool) -> None:
    """Remove what is in the way: old shards, and what a killed pack left half-written or with other options."""
    keep = {job.file for job in jobs if finished(job)}
    if overwrite and (out / FILE).is_file():  # without a manifest it is this pack itself, not finished yet
        (out / FILE).unlink()
        keep = set()
    for path in out.glob("*.tar"):
        if path.name not in keep:
            for old in (report_path(path), index_path(path), path):
                old.unlink(missing_ok=True)
    for path in out.glob("*.tmp"):
        path.unlink()


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{count:,} with {reason}" for reason, count in left_out.most_common()) or "it is empty"
