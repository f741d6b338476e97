"""A catalogue -> shards: choose the films, make the vocabulary, pack shard by shard over a process pool.

The films pass by twice as a stream: once for their ids and words, once to lay each shard's films into a file of its
own. Only ids and word counts stay in memory. The manifest is written last, and decides what is packed: a killed pack
leaves finished shards and continues where it stopped, a later one appends the films that the manifest does not have.
"""

import errno
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.genres import GENRES
from genre_dist.prepare.choosing import NOTHING, Before, choose, packed_before
from genre_dist.prepare.layout import lay_out
from genre_dist.prepare.parts import marker, what_is_missing
from genre_dist.prepare.shard import Job, Recipe, finished, pack_shard, report_path
from genre_dist.prepare.splits import RULE
from genre_dist.prepare.vectors import file_sha256, matrix_for, read_vectors
from genre_dist.prepare.vocabulary import choose_words, load_words, save_words, words_sha256
from genre_dist.progress import progress_bar
from genre_dist.storage import Place, check_writable, exists, remove, remove_folder
from genre_dist.stream.index import index_path, load_array, save_array
from genre_dist.stream.manifest import FILE, SPLITS, Manifest, Shard, save_manifest

_WORK = ".packing"


class Plan(NamedTuple):
    """All that is to do in a folder."""

    out: Place
    recipe: Recipe
    before: Before
    words: list[str]
    found: dict[str, NDArray[np.float32]] | None
    """The file's vectors of the words; None without a file, or where vectors.npy is there already."""
    left_out: Counter[str]
    jobs: list[Job]


def pack(
    catalogue: Place,
    out: Place,
    *,
    vectors: Place | None = None,
    workers: int = 1,
    overwrite: bool = False,
    **options: Any,
) -> Manifest:
    """Pack a catalogue into `out` and return the manifest; `options` are the fields of Recipe.

    A finished folder is extended: its shards and vocabulary stay byte for byte, films it has not are appended.
    Raises ValueError for wrong options, for shards of other options in `out` (unless `overwrite`), and for a catalogue
    without a film to pack; OSError if the disk is full. What was finished stays, and the same command goes on.
    """
    recipe = _recipe(out, vectors, options)
    before = NOTHING if overwrite else packed_before(out, recipe)
    with _planned(catalogue, out, recipe, vectors, before, out / _WORK) as plan:
        _remove_old(plan, overwrite)
        _save_vocabulary(plan)
        return _finish(plan, _run(plan.jobs, workers))


def pack_part(
    catalogue: Place,
    out: Place,
    part: tuple[int, int],
    *,
    vectors: Place | None = None,
    workers: int = 1,
    **options: Any,
) -> int:
    """Pack the shards number i mod n for a part (i, n), beside other parts on other nodes; returns how many they are.

    Nothing is shared but the folder: every part finds the same plan by itself, touches its own shards only and writes
    no manifest; `merge_parts` does. Raises as `pack` does.
    """
    recipe = _recipe(out, vectors, options)
    before = packed_before(out, recipe)
    with _planned(catalogue, out, recipe, vectors, before, marker(out / _WORK, part), part) as plan:
        return len(_run(plan.jobs, workers))


def merge_parts(catalogue: Place, out: Place, *, vectors: Place | None = None, **options: Any) -> Manifest:
    """Check that the parts have packed every shard and write vocabulary, vectors and manifest, as `pack` would.

    Raises ValueError if shards are missing or of other options, saying how many and which commands make them.
    """
    recipe = _recipe(out, vectors, options)
    before = packed_before(out, recipe)
    with _planned(catalogue, out, recipe, vectors, before, out / _WORK / "merge") as plan:
        reports = {job.file: finished(job) for job in plan.jobs}
        missing = [number for number, job in enumerate(plan.jobs) if reports[job.file] is None]
        if missing:
            raise ValueError(what_is_missing(out, missing, len(plan.jobs), out / _WORK))
        _remove_old(plan, overwrite=False)
        _save_vocabulary(plan)
        manifest = _finish(plan, [report for report in reports.values() if report])
    remove_folder(out / _WORK)
    return manifest


def _recipe(out: Place, vectors: Place | None, options: dict[str, Any]) -> Recipe:
    check_writable(out)
    recipe = Recipe(**options)
    return recipe if vectors is None else replace(recipe, vectors_sha256=file_sha256(vectors))


@contextmanager
def _planned(
    catalogue: Place,
    out: Place,
    recipe: Recipe,
    vectors: Place | None,
    before: Before,
    work: Place,
    part: tuple[int, int] | None = None,
) -> Iterator[Plan]:
    """Find out what is to do and lay it out below `work`, which goes in the end; a part's own stays, empty, as a mark.

    Only a part may run beside others, so whoever else comes removes what killed ones left in its `work`.
    """
    chosen = choose(catalogue, recipe, before)
    if not before.reports and not len(chosen.ids):
        reasons = ", ".join(f"{count:,} with {reason}" for reason, count in chosen.left_out.most_common())
        raise ValueError(
            f"{catalogue}: no film to pack ({reasons or 'it is empty'}); require less with --require, or import more"
        )
    words, found = _words(out, chosen.counts, vectors, before)
    chosen.counts.clear()
    recipe = replace(recipe, vocabulary_sha256=words_sha256(words))
    try:
        if part is None:
            remove_folder(work)
        with _workspace(work) as own:
            save_words(words, Path(own, "vocabulary.txt"))
            jobs = lay_out(catalogue, out, recipe, chosen, Path(own), Path(own, "vocabulary.txt"), part or (0, 1))
            yield Plan(out, recipe, before, words, found, chosen.left_out, jobs)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"no space left to write shards into {out}; those that are finished stay. Free some space and run the same "
            "command again",
        ) from None
    finally:
        if part is None:
            remove_folder(work)


@contextmanager
def _workspace(work: Place) -> Iterator[str]:
    """A folder of this process's own below `work`; for a remote one it is here, and `work` is an empty file: a mark."""
    if isinstance(work, Path):
        work.mkdir(parents=True, exist_ok=True)
    else:
        with atomic_file(work):
            pass
    below = work if isinstance(work, Path) else None
    with tempfile.TemporaryDirectory(dir=below, ignore_cleanup_errors=True) as own:
        yield own


def _words(
    out: Place, counts: Counter[str], vectors: Place | None, before: Before
) -> tuple[list[str], dict[str, NDArray[np.float32]] | None]:
    """The vocabulary, and the vectors to save: a finished folder keeps its own, as ids of words must not move."""
    if not before.reports:
        if vectors is None:
            return choose_words(counts), None
        found = read_vectors(vectors, counts)
        if not found:
            raise ValueError(f"{vectors}: none of the {len(counts):,} words of the train split is in this file")
        return choose_words(counts, found), found
    path = out / "vocabulary.txt"
    words = list(load_words(path))
    if words_sha256(words) != before.vocabulary_sha256:
        raise ValueError(f"{path}: not the vocabulary the shards were packed with; restore it, or pass --overwrite")
    keep = vectors is None or exists(out / "vectors.npy")
    return words, None if keep or vectors is None else read_vectors(vectors, set(words))


def _save_vocabulary(plan: Plan) -> None:
    """The words and their vectors; after an extension they are there already."""
    if not plan.before.reports:
        save_words(plan.words, plan.out / "vocabulary.txt")
    path = plan.out / "vectors.npy"
    if not plan.recipe.vectors_sha256:
        remove(path)
    elif plan.found is not None:
        with atomic_file(path) as file:
            save_array(matrix_for(plan.words, plan.found), file)
        plan.found.clear()


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
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker) as pool:
        waiting = {pool.submit(pack_shard, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """A worker whose parent was killed ends too; left alone it would go on writing, and then wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish(plan: Plan, reports: list[dict[str, Any]]) -> Manifest:
    """Write the manifest of the shards there were and the new ones."""
    reports = sorted(
        [*plan.before.reports, *reports],
        key=lambda report: (SPLITS.index(report["shard"]["split"]), report["shard"]["file"]),
    )
    counts = {split: np.zeros(len(GENRES), int) for split in SPLITS}
    left_out = Counter(plan.left_out)
    for report in reports:
        counts[report["shard"]["split"]] += report["genre_counts"]
        left_out.update(report["left_out"])
    recipe, vectors = plan.recipe, plan.out / "vectors.npy"
    manifest = Manifest(
        folder=plan.out,
        genres=GENRES,
        image={"size": recipe.size, "fit": recipe.fit, "quality": recipe.quality},
        text={
            "source": recipe.text,
            "vocabulary": "vocabulary.txt",
            "words": len(plan.words),
            "vocabulary_sha256": recipe.vocabulary_sha256,
            "vectors": vectors.name if recipe.vectors_sha256 else None,
            "dim": int(load_array(vectors).shape[1]) if recipe.vectors_sha256 else None,
        },
        require=recipe.require,
        split_rule=RULE,
        genre_counts={split: count.tolist() for split, count in counts.items()},
        left_out=dict(sorted(left_out.items())),
        shards=tuple(Shard(**report["shard"]) for report in reports),
    )
    save_manifest(manifest)
    return manifest


def _remove_old(plan: Plan, overwrite: bool) -> None:
    """Remove what is in the way: old shards, and what killed packs left half-written or with other options."""
    out = plan.out
    keep = {report["shard"]["file"] for report in plan.before.reports}
    keep |= {job.file for job in plan.jobs if finished(job)}
    if overwrite and exists(out / FILE):  # without a manifest it is this pack itself, not finished yet
        remove(out / FILE)
        keep = set()
    for path in (path for split in SPLITS for path in out.glob(f"{split}-*.tar")):
        if path.name not in keep:
            for old in (report_path(path), index_path(path), path):
                remove(old)
    for path in out.glob("*.tmp"):
        remove(path)
