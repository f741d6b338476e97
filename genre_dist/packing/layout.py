"""The films of each shard, laid out in a file of its own in the order of the shard: what a worker packs from."""

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

HELD_BYTES = 2 << 20
"""Rows held before they are appended to the files: bounds memory, and spares opening a file for every film."""


def lay_out(
    catalogue: AnyPath, out: AnyPath, recipe: Recipe, chosen: Chosen, work: Path, words: Path, part: tuple[int, int]
) -> list[Job]:
    """Read the catalogue once more and lay out the films of every shard, or of the shards number i mod n for (i, n).

    Returns the shards' jobs in their order.
    """
    number, parts = part
    mine = range(number % parts, len(chosen.shards), parts)
    held: dict[int, list[bytes]] = {}
    size = 0
    for shard, film in _films(catalogue, recipe, chosen, mine):
        line = json.dumps(film, ensure_ascii=False).encode() + b"\n"
        held.setdefault(shard, []).append(line)
        size += len(line)
        if size >= HELD_BYTES:
            _append(held, work)
            size = 0
    _append(held, work)
    job = partial(Job, out=out, catalogue=catalogue, words=words, recipe=recipe)
    jobs = []
    for shard in mine:
        file, split = chosen.shards[shard]
        path = _file(work, shard)
        jobs.append(job(file=file, split=split, films=path, films_sha256=_sort(path)))
    return jobs


def _films(catalogue: AnyPath, recipe: Recipe, chosen: Chosen, mine: range) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of its shard, and what its shard needs to know of it, for every film."""
    for row in read_rows(catalogue, COLUMNS):
        index = index_of(chosen.ids, row["tmdb_id"])
        if index is None or int(chosen.shard[index]) not in mine:
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


def _append(held: dict[int, list[bytes]], work: Path) -> None:
    for shard, lines in held.items():
        with open(_file(work, shard), "ab") as file:
            file.writelines(lines)
    held.clear()


def _sort(path: Path) -> str:
    """Put a shard's films into hash order; returns the SHA-256 of the file."""
    lines = path.read_bytes().splitlines(keepends=True)  # JSON escapes every line ending inside a text
    lines.sort(key=lambda line: order_key(json.loads(line)["tmdb_id"]))
    data = b"".join(lines)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
