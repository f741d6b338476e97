"""Predictions for many films, from a catalogue or a table with posters, to a folder of Parquet parts.

The films, in the order of their table, form parts of PART films; part i belongs to rank i modulo the number of ranks.
Parts are written atomically, and a valid part stays, so an interrupted prediction continues on any number of ranks.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.config.run import WEIGHTS
from genre_dist.inference.film_sources import Source, SourceFilms, find_films
from genre_dist.inference.prediction import Unlabelled, predict_logits, prepare, why_left_out
from genre_dist.inference.trained_model import Run
from genre_dist.lock import holds_files
from genre_dist.metrics.choosing import named_labels, probabilities
from genre_dist.metrics.thresholds import load_thresholds
from genre_dist.parallel.world import World, on_first
from genre_dist.printable import printable
from genre_dist.progress import progress_bar
from genre_dist.schema import TMDB, Schema, plural
from genre_dist.sealed import read_sealed, write_sealed
from genre_dist.storage import sha256_of
from genre_dist.validation import Count, Sha256

PART = 1024
BATCH = 32
IDENTITY = "prediction.json"


def part_schema(declared: Schema) -> pa.Schema:
    """The columns of a part; TMDB's films have ids that are numbers."""
    of_tmdb, texts, numbers = declared == TMDB, pa.list_(pa.string()), pa.list_(pa.float32())
    return pa.schema(
        [
            ("tmdb_id", pa.int64()) if of_tmdb else ("id", pa.string()),
            ("genres" if of_tmdb else "labels", texts),  # those that are predicted, the most probable first
            ("probabilities", numbers),  # in the model's order of labels; null if left out
            ("logits", numbers),
            ("left_out", pa.string()),  # the reason for no prediction; null if there is one
        ]
    )


SCHEMA = part_schema(TMDB)


@dataclass(frozen=True)
class Identity:
    """The content of prediction.json: all inputs that determine the predictions."""

    weights_sha256: Sha256
    thresholds: list[float] | None
    text: str
    table: str
    table_sha256: Sha256
    columns: dict[str, str]
    posters: list[str]
    poster_key: str
    posters_sha256: Sha256
    films_per_part: Count
    genres: list[str]


class Predictor(NamedTuple):
    """The arguments that every batch needs."""

    run: Run
    thresholds: NDArray[np.float64] | None  # [genres]
    world: World
    pool: Executor
    """Reads and decodes posters."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of a part."""
        return part_schema(self.run.declared)


def predict_many(run: Run, folder: Path, source: Source, out: Path, world: World) -> None:
    """Predict every film of a source, on all ranks, into `out`, whose lock the ranks hold.

    RAM holds a part's ids and logits, a batch of posters, and two small entries per film of a table. Raises ValueError
    if `out` holds anything but these predictions.
    """
    thresholds = load_thresholds(folder, run.genres)
    source_films = find_films(source, run, world.progress)
    on_first(world, lambda: _claim(out, _identity(run, folder, source, source_films, thresholds)))
    counts: Counter[str] = Counter()
    with progress_bar() as progress, ThreadPoolExecutor(max(1, run.config.data.workers)) as pool:
        predictor = Predictor(run, thresholds, world, pool)
        task = progress.add_task(run.declared.samples, total=None)
        for number, films in enumerate(_parts(source_films.films)):
            if number % world.size == world.rank:
                counts["films"] += len(films)
                counts["left out"] += _finish_part(out / f"part-{number:06d}.parquet", films, predictor)
            progress.advance(task, len(films))
    world.wait_for_all()
    gathered = world.gather(counts)
    if gathered is not None:
        _print_summary(out, sum(gathered, Counter()), source_films, thresholds is not None, run.declared)


def _print_summary(
    out: Path, counts: Counter[str], source_films: SourceFilms, is_fitted: bool, declared: Schema
) -> None:
    print(
        f"{printable(out)}: {counts['films']:,} {declared.samples}, "
        f"{counts['left out']:,} of them without what the model needs (column left_out)"
    )
    for line in source_films.left_out.lines():
        print(f"  {line}")
    if not is_fitted and declared.labels.choose == "many":
        labels = plural(declared.label)
        print(f"no thresholds were fitted: {labels} are named at one half (`genre-dist evaluate RUN --split val`)")


def _identity(
    run: Run, folder: Path, source: Source, films: SourceFilms, thresholds: NDArray[np.float64] | None
) -> Identity:
    return Identity(
        weights_sha256=sha256_of(folder / WEIGHTS),
        thresholds=None if thresholds is None else thresholds.tolist(),
        text=run.metadata["text"]["source"],
        table=str(source.table.resolve()),
        table_sha256=sha256_of(source.table),
        columns=dict(source.columns),
        posters=[str(path) for path in source.posters],
        poster_key=source.poster_key,
        posters_sha256=films.posters_sha256,
        films_per_part=PART,
        genres=run.genres,
    )


def _claim(out: Path, identity: Identity) -> None:
    """Write prediction.json into `out`. Raises ValueError if `out` holds other predictions or other files."""
    path = out / IDENTITY
    if path.is_file():
        noted = asdict(read_sealed(Identity, path, "choose another --out, as for an earlier version's"))
        if different := [key for key, value in asdict(identity).items() if noted[key] != value]:
            raise ValueError(f"{out} holds predictions with other {', '.join(different)}; choose another --out")
    elif holds_files(out):
        raise ValueError(f"{out} is not empty and holds no predictions; choose another --out")
    else:
        write_sealed(path, asdict(identity))


def _finish_part(path: Path, films: Sequence[tuple[int | str, Unlabelled]], predictor: Predictor) -> int:
    """Write a part unless a valid one exists; returns how many of its films have no prediction."""
    schema = predictor.schema
    table = _read_part(path, _ids(films, schema), schema) if path.exists() else None
    if table is None:
        table = _predict_part(films, predictor)
        with atomic_file(path) as file:
            pq.write_table(table, file, write_page_checksum=True)
    return len(table) - int(table["left_out"].null_count)


def _ids(films: Sequence[tuple[int | str, Unlabelled]], schema: pa.Schema) -> list[Any]:
    """The films' ids as a part has them."""
    return [number if schema.types[0] == pa.int64() else str(number) for number, _ in films]


def _read_part(path: Path, ids: list[Any], schema: pa.Schema = SCHEMA) -> pa.Table | None:
    """An existing part; None if it is damaged or of other films."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        same = table.schema.equals(schema) and table[0].to_pylist() == ids
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError):
        return None
    return table if same else None


def _parts(films: Iterable[tuple[int | str, Unlabelled]]) -> Iterator[list[tuple[int | str, Unlabelled]]]:
    remaining = iter(films)
    while part := list(islice(remaining, PART)):
        yield part


def _predict_part(films: Sequence[tuple[int | str, Unlabelled]], predictor: Predictor) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for first in range(0, len(films), BATCH):
        rows += _predict_batch(films[first : first + BATCH], predictor)
        predictor.world.progress()
    return pa.Table.from_pylist(rows, schema=predictor.schema)


def _predict_batch(films: Sequence[tuple[int | str, Unlabelled]], predictor: Predictor) -> list[dict[str, Any]]:
    run, thresholds, world, pool = predictor
    choose, schema = run.declared.labels.choose, predictor.schema
    of_ids, of_labels = schema.names[:2]
    prepared = list(pool.map(partial(prepare, run), [film for _, film in films]))
    rows: list[dict[str, Any]] = [dict.fromkeys(schema.names) | {of_ids: key} for key in _ids(films, schema)]
    for row, sample in zip(rows, prepared, strict=True):
        row["left_out"] = why_left_out(run, sample)
    complete = [at for at, row in enumerate(rows) if row["left_out"] is None]
    if not complete:
        return rows
    logits = predict_logits(run, [prepared[at] for at in complete], world.device)
    probable, named = probabilities(logits, choose), named_labels(logits, choose, thresholds)
    for at, logit, probability, above in zip(complete, logits, probable, named, strict=True):
        surest = [label for label in np.argsort(-probability, kind="stable") if above[label]]
        rows[at] |= {"logits": logit, "probabilities": probability, of_labels: [run.genres[label] for label in surest]}
    return rows
