"""Samples to pack, the shard of each, and a file of JSON lines for each shard: the input of a packing worker.

Memory holds a number or two for each sample, never its row.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from genre_dist.catalogue.catalogue import read_rows
from genre_dist.genres import INDEX_OF_ID
from genre_dist.packing.shard import Job, films_of
from genre_dist.packing.shard_report import Recipe, Report, read_report, shortened
from genre_dist.packing.splits import order_key, split_of
from genre_dist.packing.vocabulary import forget_rare, tokenise
from genre_dist.sample_ids import number_of_id
from genre_dist.storage import AnyPath, exists
from genre_dist.stream.manifest import FILE, SPLITS, FilmManifest, Manifest, Text, load_manifest
from genre_dist.stream.sample_manifest import Moments

AnyJob = TypeVar("AnyJob", bound=Job)
COLUMNS = ["tmdb_id", "title", "overview", "genre_ids", "release_date", "poster_status", "poster_sha256"]


class ExistingShards(NamedTuple):
    """Shards and films of a finished folder. These films stay in their shards; only others are packed."""

    reports: list[Any]
    """Reports of the manifest's complete shards, in the manifest's order, shortened."""
    ids: NDArray[np.int64]  # [films] ascending; films whose poster could not be read are among them
    text: Text | None
    """The manifest's `text`; None if no shard is complete."""
    moments: Mapping[str, Moments] = {}
    """The manifest's `numbers`."""


NO_SHARDS = ExistingShards([], np.empty(0, np.int64), None)


class Candidate(NamedTuple):
    """A row of a catalogue that may be packed."""

    id: int
    split_id: int
    """The number that decides the split: the id, or that of what the sample is split by."""
    reason: str | None
    """Why it is left out, None if it is packed."""
    text: str
    """Its words are counted for the vocabulary."""


class Chosen(NamedTuple):
    """The shard of each film, and the counts taken while the catalogue was read."""

    ids: NDArray[np.int64]  # [films] ascending, without films that are packed already
    shard: NDArray[np.int32]  # [films] number of each film's shard
    shards: list[tuple[str, str]]
    """(file, split) of each shard."""
    counts: Counter[str]
    """Word -> occurrences in the train split; empty if the folder has a vocabulary already, or for a tokenizer."""
    left_out: Counter[str]
    moments: Mapping[str, Moments] = {}
    """Field of numbers -> their mean and spread over the train split; none for films."""


def existing_shards(out: AnyPath, recipe: Recipe) -> ExistingShards:
    """The shards of a folder with a manifest; a shard that lost a file counts as not packed, so that it is made again.

    Raises ValueError if the shards were packed with other options, or if none is complete.
    """
    manifest = manifest_there(out, FilmManifest)
    return NO_SHARDS if manifest is None else whole_shards(out, manifest, recipe, Report)


def manifest_there(out: AnyPath, kind: type[Manifest]) -> Manifest | None:
    """The manifest of a folder of shards, None without one. Raises ValueError if it is damaged or of another kind."""
    if not exists(out / FILE):
        return None
    try:
        manifest = load_manifest(out)
        if not isinstance(manifest, kind):
            raise ValueError(f"{out / FILE}: of shards with other fields and labels than this catalogue declares")
        return manifest
    except ValueError as error:
        raise ValueError(f"{error} (--overwrite replaces what is there)") from None


def whole_shards(out: AnyPath, manifest: Any, recipe: Any, kind: type) -> ExistingShards:
    """The shards of a manifest whose reports, of type `kind`, and indexes are there. Raises as `existing_shards`."""
    reports, ids = [], []
    for shard in manifest.shards:
        report, films = read_report(out / shard.file, kind, damaged_is_none=True), films_of(out, shard)
        if report is None or films is None or report.shard != shard:
            continue
        _refuse_other_options(out, report.recipe, recipe)
        ids += [films, np.array(report.ids_left_out(), np.int64)]
        reports.append(shortened(report))
    if manifest.shards and not reports:
        raise ValueError(
            f"{out}: no shard of its manifest is whole (their reports or indexes are lost): bring them back, or pack "
            "all anew with --overwrite"
        )
    return ExistingShards(reports, np.unique(np.concatenate(ids)), manifest.text) if reports else NO_SHARDS


def _refuse_other_options(out: AnyPath, existing: Any, recipe: Any) -> None:
    """Raise ValueError if the recipes differ: one folder never mixes shards of two recipes."""
    there, wanted = asdict(existing), asdict(recipe)
    for name, value in wanted.items():
        if name != "vocabulary_sha256" and there[name] != value:
            old, new = (",".join(option) if isinstance(option, tuple) else option for option in (there[name], value))
            raise ValueError(
                f"{out} already holds shards packed with another --{name.removesuffix('_sha256')} ({old or 'none'} "
                f"there, {new or 'none'} here); pack into another folder, or pass --overwrite to replace them"
            )


def film_text(row: dict[str, Any], text: str) -> str:
    """The text a film is trained on: its overview, its title, or the title followed by the overview."""
    parts = {"overview": [row["overview"]], "title": [row["title"]], "both": [row["title"], row["overview"]]}[text]
    return " ".join(part.strip() for part in parts if part)


def _why_not(row: dict[str, Any], require: tuple[str, ...]) -> str | None:
    """The reason to leave a film out, or None."""
    if not any(genre in INDEX_OF_ID for genre in row["genre_ids"] or ()):
        return "no known genre"
    if "poster" in require and row["poster_status"] != "ok":
        return "no poster"
    if "overview" in require and not (row["overview"] or "").strip():
        return "no overview"
    return None


def index_of(ids: NDArray[np.int64], film: int) -> int | None:
    """The index of a film in ascending ids, None if they lack it."""
    index = int(np.searchsorted(ids, film))
    return index if index < len(ids) and ids[index] == film else None


def choose(catalogue: AnyPath, recipe: Recipe, existing: ExistingShards) -> Chosen:
    """Read the catalogue once: the films to pack, the shard of each, and the words of the train split.

    Raises ValueError for a film with two rows, for a catalogue without a film to pack, and for a catalogue that has
    less than half of the packed films: it is another catalogue, not a later state of the same.
    """
    return choose_among(_candidates(catalogue, recipe), catalogue, recipe, existing, "film")


def _candidates(catalogue: AnyPath, recipe: Recipe) -> Iterator[Candidate]:
    for row in read_rows(catalogue, COLUMNS):
        film = row["tmdb_id"]
        yield Candidate(film, film, _why_not(row, recipe.require), f"{row['title'] or ''} {row['overview'] or ''}")


def choose_among(
    candidates: Iterable[Candidate], catalogue: AnyPath, recipe: Any, existing: ExistingShards, what: str
) -> Chosen:
    """The samples to pack of all `candidates`, as `choose` has them; `what` a sample is called."""
    ids, keys, splits = array("q"), array("Q"), array("b")
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    counts_words, known = not existing.reports and not recipe.tokenizer_sha256, 0
    for id, split_id, reason, text in candidates:
        if index_of(existing.ids, id) is not None:
            known += 1
            continue
        if reason:
            left_out[reason] += 1
            continue
        split = split_of(split_id)
        ids.append(id)
        keys.append(order_key(id))
        splits.append(SPLITS.index(split))
        if split == "train" and counts_words:  # words of val and test would leak into training
            counts.update(tokenise(text))
            forget_rare(counts)
    if not existing.reports and not ids:
        reasons = ", ".join(f"{count:,} with {reason}" for reason, count in left_out.most_common())
        raise ValueError(
            f"{catalogue}: no {what} to pack ({reasons or 'it is empty'}); require less with --require, or import more"
        )
    if 2 * known < len(existing.ids):
        raise ValueError(
            f"{catalogue} knows {known:,} of the {len(existing.ids):,} {what}s packed before: another catalogue? Pack "
            "it into another folder, or pass --overwrite to replace the shards"
        )
    taken = {report.shard.file for report in existing.reports}
    arrays = np.asarray(ids), np.asarray(keys), np.asarray(splits)
    sorted_ids, shard, shards = _assign(*arrays, recipe.shard_size, taken)
    twice = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
    if len(twice):
        raise ValueError(f"{catalogue}: the {what} {sorted_ids[twice[0]]} is there twice; make the catalogue again")
    return Chosen(sorted_ids, shard, shards, counts, left_out)


def _assign(
    ids: NDArray[np.int64], keys: NDArray[np.uint64], splits: NDArray[np.int8], shard_size: int, taken: set[str]
) -> tuple[NDArray[np.int64], NDArray[np.int32], list[tuple[str, str]]]:
    """Cut each split, in hash order, into shards with unused names; returns ascending ids, their shard, the shards."""
    shard = np.empty(len(ids), np.int32)
    shards: list[tuple[str, str]] = []
    for number, split in enumerate(SPLITS):
        films = np.flatnonzero(splits == number)
        films = films[np.argsort(keys[films])]
        shard[films] = len(shards) + np.arange(len(films)) // shard_size
        wanted, index = -(-len(films) // shard_size), 0
        while wanted:
            file = f"{split}-{index:06d}.tar"
            index += 1
            if file not in taken:
                shards.append((file, split))
                wanted -= 1
    order = np.argsort(ids)
    return ids[order], shard[order], shards


MAX_PENDING_BYTES = 2 << 20
"""Bytes of lines collected before they are appended: the limit bounds memory and saves opening a file per film."""


def lay_out(
    catalogue: AnyPath, out: AnyPath, recipe: Recipe, chosen: Chosen, work: Path, words: Path, part: tuple[int, int]
) -> list[Job]:
    """Read the catalogue once more and write the file of every shard, or of the shards number i mod n for (i, n).

    Returns the jobs in the order of their shards.
    """
    job = partial(Job, out=out, catalogue=catalogue, words=words, recipe=recipe)
    return lay_out_lines(_films(catalogue, recipe), chosen, work, part, job)


def lay_out_lines(
    lines: Iterable[tuple[int, Callable[[], dict[str, Any]]]],
    chosen: Chosen,
    work: Path,
    part: tuple[int, int],
    job: Callable[..., AnyJob],
) -> list[AnyJob]:
    """Write the samples of this part into the files of their shards, and make the `job` of each.

    `lines` are the catalogue's ids, each with a function that makes the sample's line of JSON.
    """
    number, parts = part
    own = range(number % parts, len(chosen.shards), parts)
    pending: dict[int, list[bytes]] = {}
    size = 0
    for id, make in lines:
        index = index_of(chosen.ids, id)
        if index is None or (shard := int(chosen.shard[index])) not in own:
            continue
        line = json.dumps(make(), ensure_ascii=False).encode() + b"\n"
        pending.setdefault(shard, []).append(line)
        size += len(line)
        if size >= MAX_PENDING_BYTES:
            _append(pending, work)
            size = 0
    _append(pending, work)
    jobs = []
    for shard in own:
        file, split = chosen.shards[shard]
        path = _file(work, shard)
        jobs.append(job(file=file, split=split, films=path, films_sha256=_sort(path)))
    return jobs


def _films(catalogue: AnyPath, recipe: Recipe) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Every film with a function that makes of it the columns that packing needs."""
    for row in read_rows(catalogue, COLUMNS):
        yield row["tmdb_id"], partial(_film, row, recipe.text)


def _film(row: dict[str, Any], text: str) -> dict[str, Any]:
    return {
        "tmdb_id": row["tmdb_id"],
        "title": row["title"] or "",
        "genre_ids": [genre for genre in row["genre_ids"] if genre in INDEX_OF_ID],
        "release_date": row["release_date"] or "",
        "text": film_text(row, text),
        "poster": row["poster_sha256"] if row["poster_status"] == "ok" else None,
    }


def _file(work: Path, shard: int) -> Path:
    return work / f"{shard}.jsonl"


def _append(pending: dict[int, list[bytes]], work: Path) -> None:
    for shard, lines in pending.items():
        with open(_file(work, shard), "ab") as file:
            file.writelines(lines)
    pending.clear()


def _sort(path: Path) -> str:
    """Put a shard's films into hash order; returns the SHA-256 of the file."""
    lines = path.read_bytes().splitlines(keepends=True)  # JSON escapes every line ending inside a text
    lines.sort(key=lambda line: order_key(_id_in(json.loads(line))))
    data = b"".join(lines)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _id_in(line: dict[str, Any]) -> int:
    return int(line["tmdb_id"] if "tmdb_id" in line else number_of_id(line["id"]))
