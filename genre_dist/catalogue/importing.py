"""Import: any table of films (Parquet, CSV, JSON lines) and any folders or tars of posters become a catalogue.

The import streams three times: the table for its ids (so that a bad table is refused before anything is written), the
posters, and the table again to write the rows with the results of their posters. Memory holds two small entries a film.
"""

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from genre_dist.catalogue.catalogue import CatalogueWriter, movies_file, poster_file, remove_partial_files, write_poster
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import Look, Poster, TarMember, find_posters
from genre_dist.catalogue.tables import film_row, open_table, text_of
from genre_dist.lock import one_writer
from genre_dist.progress import progress_bar
from genre_dist.storage import sha256_of

NEEDED = ("tmdb_id", "genre_ids")
COUNTED = ("overview", "title", "release_date", "genre_ids")
EMPTY_POSTER = "failed: the file is empty"


class ImportReport(NamedTuple):
    """Counts of an import."""

    rows: int
    having: Counter[str]
    """`poster` or the name of another column -> films that have a value there."""
    unknown_genres: Counter[str]
    """Name -> occurrences."""
    left_out: LeftOut


class _Taken(NamedTuple):
    """The poster of one film in the catalogue."""

    size: int
    sha256: str
    look: Look


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
    _check_paths(table, posters, out)
    with one_writer(out), progress_bar() as progress:
        if movies_file(out).exists() and not overwrite:
            raise ValueError(f"{out} already holds a catalogue; give another --out, or --overwrite to replace it")
        left_out = LeftOut()
        films = open_table(table, columns, poster_key, NEEDED)
        known = films.known(progress.track(films.rows(), description="ids"), left_out)
        if overwrite:
            movies_file(out).unlink(missing_ok=True)
            shutil.rmtree(out / "posters", ignore_errors=True)
        remove_partial_files(out)
        taken: dict[int, _Taken] = {}
        for path in posters:
            for poster in progress.track(find_posters(path, known.of_key, left_out), description=path.name):
                _take(poster, known.of_key[poster.key], out, taken, left_out)
        unknown: Counter[str] = Counter()
        having: Counter[str] = Counter()
        count = len(known.ids)
        rows = progress.track(films.rows(), description="films", total=count)
        with CatalogueWriter(out) as writer:
            for film, cells in known.first_rows(rows):
                row = film_row(film, cells, unknown) | _poster_columns(taken.get(film)) | {"fetched_at": None}
                writer.add(row)
                having.update(name for name in COUNTED if row[name])
                having["poster"] += row["poster_status"] == "ok"
                _note_losses(row, cells, left_out)
        return ImportReport(count, having, unknown, left_out)


def _check_paths(table: Path, posters: Sequence[Path], out: Path) -> None:
    for path in (table, *posters):
        if not path.exists():
            raise ValueError(f"{path} does not exist; check --table and --posters")
        if path.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{path} lies inside --out {out}, which this import writes; give another --out")


def _take(poster: Poster, film: int, out: Path, taken: dict[int, _Taken], left_out: LeftOut) -> None:
    """Copy a poster, unless the film has one already that looks as good."""
    if film in taken and poster.look <= taken[film].look:
        left_out.add("further files for films that have a poster, left out", poster.where)
        return
    size, sha256 = _link(poster.source, out, film) or write_poster(out, film, poster.read())
    taken[film] = _Taken(size, sha256, poster.look)


def _link(source: Path | TarMember, out: Path, film: int) -> tuple[int, str] | None:
    """Hard-link a file into the catalogue, which needs no space; returns its size and SHA-256.

    Returns None for files in tars and on other file systems, which have to be copied.
    """
    if isinstance(source, TarMember):
        return None
    target = poster_file(out, film)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not (target.exists() and target.samefile(source)):  # the link of a killed import
            target.unlink(missing_ok=True)
            os.link(source.resolve(), target)
    except OSError:
        return None
    return target.stat().st_size, sha256_of(target)


def _poster_columns(poster: _Taken | None) -> dict[str, Any]:
    if poster is None:
        return {"poster_status": "none", "poster_bytes": 0, "poster_sha256": ""}
    status = "ok" if poster.size else EMPTY_POSTER
    return {"poster_status": status, "poster_bytes": poster.size, "poster_sha256": poster.sha256}


def _note_losses(row: Mapping[str, Any], cells: Mapping[str, Any], left_out: LeftOut) -> None:
    """Count the values of a film's row that the catalogue could not keep."""
    film = row["tmdb_id"]
    if not row["genre_ids"]:
        left_out.add("films without a known genre (pack leaves them out)", f"film {film}")
    if row["poster_status"] == EMPTY_POSTER:
        left_out.add(f"posters {EMPTY_POSTER}", f"film {film}")
    for name, kept in (("release_date", row["release_date"]), ("popularity", row["popularity"] is not None)):
        if not kept and text_of(cells.get(name)):
            left_out.add(f"films whose {name} has a form that is not read", f"film {film} ({cells[name]})")
