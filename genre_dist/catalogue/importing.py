"""Import: any table of films (Parquet, CSV, JSON lines) and any folders or tars of posters become a catalogue.

The import streams three times: the table for its ids (so that a bad table is refused before anything is written), the
posters, and the table again to write the rows with the results of their posters. Memory holds two small entries a film.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from genre_dist.catalogue.catalogue import (
    CatalogueWriter,
    holds_catalogue,
    poster_file,
    remove_catalogue,
    remove_partial_files,
)
from genre_dist.catalogue.cells import text_of
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import find_posters, further_files
from genre_dist.catalogue.tables import film_row, open_table
from genre_dist.catalogue.taking import EMPTY, Taken, check_paths, image_columns, take
from genre_dist.lock import one_writer
from genre_dist.progress import progress_bar
from genre_dist.schema import TMDB

NEEDED = ("tmdb_id", "genre_ids")
COUNTED = ("overview", "title", "release_date", "genre_ids")


class ImportReport(NamedTuple):
    """Counts of an import."""

    rows: int
    having: Counter[str]
    """`poster` or the name of another column -> films that have a value there."""
    unknown_genres: Counter[str]
    """Name -> occurrences."""
    left_out: LeftOut


def import_catalogue(
    table: Path,
    posters: Sequence[Path],
    out: Path,
    columns: Mapping[str, str] = {},
    poster_key: str = "tmdb_id",
    overwrite: bool = False,
) -> ImportReport:
    """Make a catalogue in `out` from a table and from posters, which belong to films by their file names.

    `table` is .parquet, .csv (UTF-8, with a heading) or .jsonl. `columns` maps the catalogue's column names to the
    table's. Each of `posters` is a folder, searched recursively, or a tar; a film's poster is the first image whose
    name is the film's value in the column `poster_key`. `overwrite` replaces a catalogue already in `out`.

    Raises ValueError naming the file, column or row that cannot be read. A broken tar leaves the posters before the
    break, each complete, but no movies.parquet.
    """
    check_paths(table, list(posters), out)
    with one_writer(out), progress_bar() as progress:
        if holds_catalogue(out) and not overwrite:
            raise ValueError(f"{out} already holds a catalogue; give another --out, or --overwrite to replace it")
        left_out = LeftOut()
        films = open_table(table, columns, poster_key, NEEDED)
        known = films.known(progress.track(films.rows(), description="ids"), left_out)
        if overwrite:
            remove_catalogue(out)
        remove_partial_files(out)
        taken: dict[int, Taken] = {}
        for path in posters:
            for poster in progress.track(find_posters(path, known.of_key, left_out), description=path.name):
                film = known.of_key[poster.key]
                if better := take(poster, poster_file(out, film), taken.get(film)):
                    taken[film] = better
                else:
                    left_out.add(further_files(TMDB), poster.where)
        unknown: Counter[str] = Counter()
        having: Counter[str] = Counter()
        count = len(known.ids)
        rows = progress.track(films.rows(), description="films", total=count)
        with CatalogueWriter(out) as writer:
            for film, cells in known.first_rows(rows):
                row = film_row(film, cells, unknown) | image_columns(taken.get(film), "poster_") | {"fetched_at": None}
                writer.add(row)
                having.update(name for name in COUNTED if row[name])
                having["poster"] += row["poster_status"] == "ok"
                _note_losses(row, cells, left_out)
        return ImportReport(count, having, unknown, left_out)


def _note_losses(row: Mapping[str, Any], cells: Mapping[str, Any], left_out: LeftOut) -> None:
    """Count the values of a film's row that the catalogue could not keep."""
    film = row["tmdb_id"]
    if not row["genre_ids"]:
        left_out.add("films without a known genre (pack leaves them out)", f"film {film}")
    if row["poster_status"] == EMPTY:
        left_out.add(f"posters {EMPTY}", f"film {film}")
    for name, kept in (("release_date", row["release_date"]), ("popularity", row["popularity"] is not None)):
        if not kept and text_of(cells.get(name)):
            left_out.add(f"films whose {name} has a form that is not read", f"film {film} ({cells[name]})")
