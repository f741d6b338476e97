"""A catalogue -> shards: choose the samples, make the vocabulary, pack shard by shard over a process pool.

The catalogue is streamed twice: once for ids and words, once to write each shard's samples into a file of its own. Only
ids and word counts stay in memory. The manifest is written last and decides which samples are packed: a killed pack
leaves finished shards and resumes with the next, a later pack appends the samples that the manifest lacks.
"""

import errno
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from genre_dist import lock
from genre_dist.atomic import atomic_file
from genre_dist.lock import one_writer, take
from genre_dist.packing.catalogue_rows import rows_of, schema_of
from genre_dist.packing.layout import NO_SHARDS, ExistingShards, choose, existing_shards, lay_out
from genre_dist.packing.packing_manifest import VECTORS, Packing, token_file, write_manifest
from genre_dist.packing.parts import missing_shards_message, part_folder
from genre_dist.packing.recipe import recipe_of
from genre_dist.packing.shard import Job, finished, pack_shard
from genre_dist.packing.shard_report import AnyReport, report_path
from genre_dist.packing.tokenizer import BY_WORDS, WORDS, TokenizerFile, read_tokenizer_file
from genre_dist.packing.vectors import WordVectors, matrix_for, read_vectors, require_vectors
from genre_dist.packing.vocabulary import choose_words, load_words, save_words, words_sha256
from genre_dist.pretrained import TOKENIZER
from genre_dist.printable import printable
from genre_dist.progress import progress_bar
from genre_dist.storage import AnyPath, check_writable, exists, remove, remove_folder, sha256_of
from genre_dist.stream.index import index_path, save_array
from genre_dist.stream.manifest import FILE, SPLITS, Manifest, lists_tars
from genre_dist.stream.words import load_vectors
from genre_dist.workers import in_processes

_WORK = ".packing"


def pack(
    catalogue: AnyPath,
    out: AnyPath,
    *,
    vectors: AnyPath | None = None,
    tokenizer: str = BY_WORDS,
    workers: int = 1,
    overwrite: bool = False,
    **options: Any,
) -> Manifest:
    """Pack a catalogue into `out` and return the manifest; `options` are the fields of Recipe.

    `tokenizer` is `words`, or names a tokenizer.json as `read_tokenizer_file` finds it.

    A finished folder is extended: its shards and vocabulary stay byte for byte, samples that it lacks are appended.
    Raises ValueError for wrong options, for shards of other options in `out` (unless `overwrite`), and for a catalogue
    without a sample to pack; OSError if the disk is full. Finished shards stay, and the same command resumes.
    """
    with _planned(catalogue, out, vectors, tokenizer, options, overwrite=overwrite) as packing:
        _remove_old(packing, overwrite)
        _save_vocabulary(packing)
        return _finish(packing, pack_all(packing.jobs, workers))


def pack_part(
    catalogue: AnyPath,
    out: AnyPath,
    part: tuple[int, int],
    *,
    vectors: AnyPath | None = None,
    tokenizer: str = BY_WORDS,
    workers: int = 1,
    **options: Any,
) -> int:
    """Pack the shards number i mod n for a part (i, n), beside other parts on other nodes; returns their number.

    Parts share nothing but the folder: each computes the same plan, touches its own shards only and writes no
    manifest, which `merge_parts` does. Raises as `pack` does.
    """
    with _planned(catalogue, out, vectors, tokenizer, options, part=part) as packing:
        own_files = {job.file.removesuffix(".tar") for job in packing.jobs}
        for path in out.glob("*.tmp"):  # half-written shards of this part, left by killed processes
            if path.name.partition(".")[0] in own_files:
                remove(path)
        return len(pack_all(packing.jobs, workers))


def merge_parts(
    catalogue: AnyPath, out: AnyPath, *, vectors: AnyPath | None = None, tokenizer: str = BY_WORDS, **options: Any
) -> Manifest:
    """Check that the parts have packed every shard and write vocabulary, vectors and manifest, as `pack` would.

    Raises ValueError if shards are missing or of other options; the message counts them and names the commands.
    """
    with _planned(catalogue, out, vectors, tokenizer, options, work=f"{_WORK}/merge") as packing:
        reports = {job.file: finished(job) for job in packing.jobs}
        missing = [number for number, job in enumerate(packing.jobs) if reports[job.file] is None]
        if missing:
            raise ValueError(missing_shards_message(out, missing, len(packing.jobs), out / _WORK))
        _remove_old(packing, overwrite=False)
        _save_vocabulary(packing)
        manifest = _finish(packing, [report for report in reports.values() if report])
        remove_folder(out / _WORK)
        return manifest


@contextmanager
def _planned(
    catalogue: AnyPath,
    out: AnyPath,
    vectors: AnyPath | None,
    tokenizer: str,
    options: dict[str, Any],
    *,
    overwrite: bool = False,
    part: tuple[int, int] | None = None,
    work: str = _WORK,
) -> Iterator[Packing]:
    """Lock the folder, plan the shards and write their samples below `work`."""
    check_writable(out)
    if lists_tars(out):
        raise ValueError(f"{out} lists tars that were not packed there, and may hold them; pack into another folder")
    schema = schema_of(catalogue)
    recipe, pieces = recipe_of(schema, **options), None
    if tokenizer != BY_WORDS:
        if vectors is not None:
            raise ValueError(
                f"--vectors has vectors of words, and --tokenizer {tokenizer} makes none: drop one of them"
            )
        pieces = read_tokenizer_file(tokenizer)
        recipe = replace(recipe, tokenizer_sha256=pieces.sha256, vocabulary_sha256=pieces.sha256)
    try:
        with _workspace(out, out / work if part is None else part_folder(out / work, part), part) as own:
            if vectors is not None:
                require_vectors(vectors)
                recipe = replace(recipe, vectors_sha256=sha256_of(vectors))
            existing = NO_SHARDS if overwrite else existing_shards(out, schema, recipe)
            chosen = choose(catalogue, schema, recipe, existing)
            words, read, dim = list[str](), None, None
            if pieces is None:
                words, read, dim = _words(out, chosen.counts, vectors, existing)
                recipe = replace(recipe, vocabulary_sha256=words_sha256(words))
            chosen.counts.clear()
            save_tokens(words, pieces, own)
            tokens = own / token_file(pieces)
            job = partial(Job, out=out, catalogue=catalogue, schema=schema, words=tokens, recipe=recipe)
            jobs = lay_out(rows_of(catalogue, schema, recipe), chosen, own, part or (0, 1), job)
            yield Packing(schema, out, recipe, existing, words, pieces, read, dim, chosen, jobs)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = error.filename or (out if isinstance(out, Path) else tempfile.gettempdir())
        raise OSError(
            error.errno,
            f"no space left to write {where}; the shards that are finished stay. Free some space and run the same "
            "command again",
        ) from None


@contextmanager
def _workspace(out: AnyPath, work: AnyPath, part: tuple[int, int] | None) -> Iterator[Path]:
    """Lock `out`, and make a temporary folder of this process below `work`.

    A part shares `out` with the other parts of the same n, but not with a second process of the same part; its `work`
    stays, empty, as a mark of the part. Leftovers of killed processes in `work` are removed. Where `out` is remote, the
    temporary folder is local and `work` is an empty file.
    """
    with one_writer(out, shared=part is not None), ExitStack() as stack:
        below = work if isinstance(work, Path) else None
        if part is None:
            remove_folder(work)
            stack.callback(remove_folder, work)
        if below is None:
            with atomic_file(work):
                pass
        else:
            below.mkdir(parents=True, exist_ok=True)
            if part is not None:
                stack.enter_context(one_writer(below))
                for other in below.parent.glob("*-of-*"):
                    if other.is_dir() and not other.name.endswith(f"-of-{part[1]}"):
                        take(other).release()
            for left in below.iterdir():
                if left.name != lock.FILE:
                    remove_folder(left)
        yield Path(stack.enter_context(tempfile.TemporaryDirectory(dir=below, ignore_cleanup_errors=True)))


def _words(
    out: AnyPath, counts: Counter[str], vectors: AnyPath | None, existing: ExistingShards
) -> tuple[list[str], WordVectors | None, int | None]:
    """The vocabulary, vectors to save, and their width. A finished folder keeps its words: ids must not change."""
    words = None
    if existing.text is not None:
        words = list(load_words(out / WORDS, existing.text["vocabulary_sha256"]))
        with suppress(ValueError):  # lost or damaged vectors are made again
            load_vectors(out, existing.text)
            return words, None, existing.text["dim"]
    if vectors is None:
        return choose_words(counts), None, None
    read = vectors_of_words(vectors, words or counts)
    return words or choose_words(counts, read.by_word), read, read.dim


def vectors_of_words(vectors: AnyPath, words: Collection[str]) -> WordVectors:
    """The words' vectors; prints how many the file has. Raises ValueError if it has none."""
    read = read_vectors(vectors, words)
    if not read.by_word:
        raise ValueError(f"{vectors}: none of the {len(words):,} words of the train split is in this file")
    inside = "" if read.file == vectors.name else f" ({printable(read.file)})"
    print(f"{vectors}{inside}: {read.dim} numbers a word, for {len(read.by_word):,} of {len(words):,} words here")
    for note in read.notes:
        print(f"  {note}")
    return read


def save_tokens(words: list[str], pieces: TokenizerFile | None, folder: AnyPath) -> None:
    """Write the vocabulary, or copy the tokenizer's file."""
    if pieces is None:
        save_words(words, folder / WORDS)
    else:
        with atomic_file(folder / TOKENIZER) as file:
            file.write(pieces.written)


def _save_vocabulary(packing: Packing) -> None:
    """Save the words and their vectors, or the tokenizer; an extended folder has its words already."""
    if packing.tokenizer is not None or not packing.existing.reports:
        save_tokens(packing.words, packing.tokenizer, packing.out)
        remove(packing.out / (TOKENIZER if packing.tokenizer is None else WORDS))  # of shards that are replaced
    path = packing.out / VECTORS
    if packing.dim is None:
        remove(path)
    elif packing.vectors is not None:
        with atomic_file(path) as file:
            save_array(matrix_for(packing.words, packing.vectors.by_word), file)
        packing.vectors.by_word.clear()


def pack_all(jobs: list[Job], workers: int) -> list[AnyReport]:
    """Pack the unfinished shards, on several processes; returns all reports in the order of the jobs."""
    reports = {job.file: report for job in jobs if (report := finished(job))}
    todo = [job for job in jobs if job.file not in reports]
    with progress_bar() as progress:
        task = progress.add_task("packing shards", total=len(jobs), completed=len(reports))
        for job, report in in_processes(pack_shard, todo, workers, f"packing {jobs[0].out}" if jobs else ""):
            reports[job.file] = report
            progress.advance(task)
    return [reports[job.file] for job in jobs]


def _finish(packing: Packing, reports: list[AnyReport]) -> Manifest:
    """Write the manifest of the existing and the new shards."""
    reports = sorted(
        [*packing.existing.reports, *reports],
        key=lambda report: (SPLITS.index(report.shard.split), report.shard.file),
    )
    return write_manifest(packing, reports)


def _remove_old(packing: Packing, overwrite: bool) -> None:
    """Remove shards outside this plan: old ones, and half-written or differently packed ones of killed packs."""
    out = packing.out
    keep = {report.shard.file for report in packing.existing.reports}
    keep |= {job.file for job in packing.jobs if finished(job)}
    if overwrite and exists(out / FILE):  # without a manifest the shards are this pack's own, unfinished
        remove(out / FILE)
        keep = set()
    for path in (path for split in SPLITS for path in out.glob(f"{split}-*.tar")):
        if path.name not in keep:
            for old in (report_path(path), index_path(path), path):
                remove(old)
    for path in out.glob("*.tmp"):
        remove(path)
