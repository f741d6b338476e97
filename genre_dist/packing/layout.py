"""A file of JSON lines for each shard, its films in the order of the shard: the input of a packing worker."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from genre_dist.catalogue.catalogue import read_rows
from genre_dist.genres import INDEX_OF_ID
from genre_dist.packing.choosing import COLUMNS, Chosen, film_text, index_of
from genre_dist.packing.shard import Job
from genre_dist.packing.shard_report import Recipe
from genre_dist.packing.splits import order_key
from genre_dist.storage import AnyPath

MAX_PENDING_BYTES = 2 << 20
"""Bytes of lines collected before they are appended: the limit bounds memory and saves opening a file per film."""


def lay_out(
    catalogue: AnyPath, out: AnyPath, recipe: Recipe, chosen: Chosen, work: Path, words: Path, part: tuple[int, int]
) -> list[Job]:
    """Read the catalogue once more and write the file of every shard, or of the shards number i mod n for (i, n).

    Returns the jobs in the order of their shards.
    """
    number, parts = part
    own = range(number % parts, len(chosen.shards), parts)
    pending: dict[int, list[bytes]] = {}
    size = 0
    for shard, film in _films(catalogue, recipe, chosen, own):
        line = json.dumps(film, ensure_ascii=False).encode() + b"\n"
        pending.setdefault(shard, []).append(line)
        size += len(line)
        if size >= MAX_PENDING_BYTES:
            _append(pending, work)
            size = 0
    _append(pending, work)
    job = partial(Job, out=out, catalogue=catalogue, words=words, recipe=recipe)
    jobs = []
    for shard in own:
        file, split = chosen.shards[shard]
        path = _file(work, shard)
        jobs.append(job(file=file, split=split, films=path, films_sha256=_sort(path)))
    return jobs


def _films(catalogue: AnyPath, recipe: Recipe, chosen: Chosen, own: range) -> Iterator[tuple[int, dict[str, Any]]]:
    """For every film, the number of its shard and the columns that packing needs."""
    for row in read_rows(catalogue, COLUMNS):
        index = index_of(chosen.ids, row["tmdb_id"])
        if index is None or int(chosen.shard[index]) not in own:
            continue
        yield (
            int(chosen.shard[index]),
            {
                "tmdb_id": row["tmdb_id"],
                "title": row["title"] or "",
                "genre_ids": [genre for genre in row["genre_ids"] if genre in INDEX_OF_ID],
                "release_date": row["release_date"] or "",
                "text": film_text(row, recipe.text),
                "poster": row["poster_sha256"] if row["poster_status"] == "ok" else None,
            },
        )


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
    lines.sort(key=lambda line: order_key(json.loads(line)["tmdb_id"]))
    data = b"".join(lines)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
