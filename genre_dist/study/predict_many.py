"""Predictions for many films: a catalogue, or a table with a folder of posters, to a folder of Parquet parts.

Films are cut into parts of PART in the order of their table; the ranks take the parts in turn. A part is whole or
absent, and one that is there is not made again: a prediction that was stopped goes on, on any number of ranks.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from genre_dist.acquire.catalogue import count_rows, movies_file, poster_file, read_rows
from genre_dist.acquire.tables import table_rows
from genre_dist.atomic import atomic_file
from genre_dist.parallel.world import World, start_world, stop_world
from genre_dist.progress import progress_bar
from genre_dist.study.prediction import Film, film_pixels, predict_logits
from genre_dist.study.run import Run, load_run
from genre_dist.study.thresholds import load_thresholds
from genre_dist.training.export import WEIGHTS

PART = 1024
BATCH = 32
IDENTITY = "prediction.json"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
SCHEMA = pa.schema(
    [
        ("tmdb_id", pa.int64()),
        ("genres", pa.list_(pa.string())),  # above their thresholds, the most probable first
        ("probabilities", pa.list_(pa.float32())),  # in the model's order of genres; null if left out
        ("logits", pa.list_(pa.float32())),
        ("left_out", pa.string()),  # why there is no prediction; null if there is one
    ]
)


class Source(NamedTuple):
    """Where films come from: a catalogue, or a table and perhaps a folder with `ID.jpg` (.png, .webp)."""

    table: Path
    posters: Path | None
    is_catalogue: bool

    def films(self) -> Iterator[tuple[int, Film]]:
        """Every film in the order of the table. Raises ValueError for a table without ids."""
        if self.is_catalogue:
            for row in read_rows(self.table.parent, ["tmdb_id", "overview", "poster_status"]):
                has = row["poster_status"] == "ok"
                poster = poster_file(self.table.parent, row["tmdb_id"]) if has else None
                yield row["tmdb_id"], Film(poster, row["overview"] or None)
            return
        columns = {name: name for name in ("tmdb_id", "overview")}
        for number, row in enumerate(table_rows(self.table, columns), 1):
            try:
                film = int(row["tmdb_id"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{self.table}: row {number} has no whole number as tmdb_id") from None
            yield film, Film(self._poster(film), row.get("overview") or None)

    def _poster(self, film: int) -> Path | None:
        if self.posters is None:
            return None
        return next((path for end in ENDINGS if (path := self.posters / f"{film}{end}").is_file()), None)


def source_of(catalogue: Path | None, table: Path | None, posters: Path | None) -> Source:
    """The films asked for. Raises ValueError if that is neither or both, or is not there."""
    if (catalogue is None) == (table is None):
        raise ValueError("say which films: --catalogue FOLDER, or --table FILE with --posters FOLDER")
    if catalogue is not None:
        count_rows(catalogue)
        return Source(movies_file(catalogue), None, True)
    assert table is not None
    for path in (table, posters):
        if path is not None and not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    return Source(table, posters, False)


def predict_many(folder: Path, source: Source, out: Path) -> None:
    """Predict every film of a source, on all ranks that were started, into `out`.

    RAM holds a part's ids and logits and a batch of posters. Raises ValueError if `out` holds something else.
    """
    world = start_world()
    run = load_run(folder, world.device)
    thresholds = load_thresholds(folder, run.genres)
    problem = world.broadcast(_claim(out, folder, run, source, thresholds) if world.is_first else None)
    if problem:
        raise ValueError(problem)
    counts: Counter[str] = Counter()
    with progress_bar() as progress, ThreadPoolExecutor(max(1, run.config.data.workers)) as pool:
        task = progress.add_task("films", total=None)
        for number, films in enumerate(_parts(source)):
            path = out / f"part-{number:06d}.parquet"
            if number % world.size == world.rank and not path.is_file():
                table = _predict_part(run, thresholds, films, world, pool)
                with atomic_file(path) as file:
                    pq.write_table(table, file)
            progress.advance(task, len(films))
            counts["films"] += len(films)
    world.barrier()
    if world.is_first:
        left_out = sum(
            pq.read_table(path, columns=["left_out"])["left_out"].drop_null().length() for path in _made(out)
        )
        print(f"{out}: {counts['films']:,} films, {left_out:,} of them without what the model needs (column left_out)")
        if thresholds is None:
            print("no thresholds were fitted: genres are named at one half (`genre-dist evaluate RUN --split val`)")
    stop_world(world)


def _made(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def _claim(out: Path, folder: Path, run: Run, source: Source, thresholds: NDArray[np.float64] | None) -> str | None:
    """Note in `out` what is predicted there; returns what stands in the way, if anything."""
    digest = hashlib.sha256()
    with open(folder / WEIGHTS, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    identity = {
        "weights_sha256": digest.hexdigest(),
        "thresholds": None if thresholds is None else thresholds.tolist(),
        "table": str(source.table.resolve()),
        "table_bytes": source.table.stat().st_size,
        "posters": None if source.posters is None else str(source.posters.resolve()),
        "films_per_part": PART,
    }
    path = out / IDENTITY
    if path.is_file():
        told = json.loads(path.read_text())
        different = [key for key, value in identity.items() if told.get(key) != value]
        return f"{out} holds predictions with other {', '.join(different)}; choose another --out" if different else None
    if out.exists() and any(out.iterdir()):
        return f"{out} is not empty and holds no predictions; choose another --out"
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "w") as file:
        json.dump(identity | {"run": str(folder), "genres": run.genres}, file, indent=1)
    return None


def _parts(source: Source) -> Iterator[list[tuple[int, Film]]]:
    films = source.films()
    while part := list(islice(films, PART)):
        yield part


def _predict_part(
    run: Run,
    thresholds: NDArray[np.float64] | None,
    films: Sequence[tuple[int, Film]],
    world: World,
    pool: ThreadPoolExecutor,
) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for first in range(0, len(films), BATCH):
        rows += _predict_batch(run, thresholds, films[first : first + BATCH], world.device, pool)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _predict_batch(
    run: Run,
    thresholds: NDArray[np.float64] | None,
    films: Sequence[tuple[int, Film]],
    device: torch.device,
    pool: ThreadPoolExecutor,
) -> list[dict[str, Any]]:
    model = run.config.model
    pixels = film_pixels(run, [film for _, film in films], pool) if model.uses_poster else [""] * len(films)
    rows: list[dict[str, Any]] = [dict.fromkeys(SCHEMA.names) | {"tmdb_id": number} for number, _ in films]
    for row, (_, film), found in zip(rows, films, pixels, strict=True):
        if model.uses_poster and isinstance(found, str):
            row["left_out"] = found
        elif model.uses_text and film.overview is None:
            row["left_out"] = "no overview"
    whole = [at for at, row in enumerate(rows) if row["left_out"] is None]
    if not whole:
        return rows
    images = [found for at in whole if not isinstance(found := pixels[at], str)]
    logits = predict_logits(run, images, [films[at][1].overview or "" for at in whole], device)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    named = logits > (0 if thresholds is None else thresholds)
    for at, logit, probability, above in zip(whole, logits, probabilities, named, strict=True):
        surest = [genre for genre in np.argsort(-probability, kind="stable") if above[genre]]
        rows[at] |= {"logits": logit, "probabilities": probability, "genres": [run.genres[genre] for genre in surest]}
    return rows
