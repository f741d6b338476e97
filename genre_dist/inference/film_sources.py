"""Films to predict, from a catalogue or from a table with posters; posters are found as `genre-dist import` does."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from genre_dist.catalogue.catalogue import count_rows, movies_file, poster_file, read_rows, samples_file
from genre_dist.catalogue.cells import text_of
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import refuse_compressed
from genre_dist.catalogue.tables import Films, FilmTable, open_table
from genre_dist.inference.prediction import TEXT_FIELDS, Unlabelled
from genre_dist.inference.sample_sources import ImageFiles, Images, catalogue_samples, image_in, table_samples
from genre_dist.inference.trained_model import Run
from genre_dist.packing.catalogue_rows import film_text
from genre_dist.schema import TMDB, Schema

Thing = TypeVar("Thing")


class Source(NamedTuple):
    """A source of films: a catalogue's table, or any table with folders and tars of posters."""

    table: Path
    is_catalogue: bool
    posters: tuple[Path, ...] = ()
    columns: Mapping[str, str] = {}
    """Standard column name -> the table's column name."""
    poster_key: str = "tmdb_id"


class SourceFilms(NamedTuple):
    """The films of a source in the order of their table, each once; `films` can be read only once."""

    films: Iterator[tuple[int | str, Unlabelled]]
    """By the id as predictions have it."""
    posters_sha256: str
    """A digest of the paths, sizes and modification times of a table's posters."""
    left_out: LeftOut


def source_of(
    catalogue: Path | None, table: Path | None, posters: Sequence[Path], columns: Mapping[str, str], poster_key: str
) -> Source:
    """The source that the options name. Raises ValueError if they name none or two, or a missing file."""
    if (catalogue is None) == (table is None):
        raise ValueError("say which samples: --catalogue FOLDER, or --table FILE with --posters FOLDERS_OR_TARS")
    if catalogue is not None:
        if posters or columns:
            raise ValueError("--posters and --columns belong to a --table; a catalogue has its own")
        if samples_file(catalogue).is_file():
            return Source(samples_file(catalogue), True)
        count_rows(catalogue)
        return Source(movies_file(catalogue), True)
    assert table is not None
    for path in (table, *posters):
        path = Path(str(path).rpartition("=")[2]) if path in posters and not path.exists() else path  # FIELD=PATH
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if path in posters and path.is_file():
            refuse_compressed(path)
    return Source(table, False, tuple(map(_resolved, posters)), columns, poster_key)


def _resolved(posters: Path) -> Path:
    """An absolute path, behind the name of a field if there is one."""
    field, equals, path = str(posters).partition("=")
    return posters.resolve() if not equals or posters.exists() else Path(f"{field}={Path(path).resolve()}")


def find_films(source: Source, run: Run, progress: Callable[[], None]) -> SourceFilms:
    """Find the films, with the text that the model was trained on; calls `progress` repeatedly.

    RAM holds two small entries per film of a table. Raises ValueError for an unreadable source, and for a table without
    the columns that the model needs.
    """
    if run.declared != TMDB:
        return _find_samples(source, run.declared, progress)
    text = run.metadata["text"]["source"]
    if source.is_catalogue:
        return SourceFilms(_catalogue_films(source.table.parent, text), _NOTHING, LeftOut())
    uses = run.config.model
    left_out = LeftOut()
    needed = ("tmdb_id", *(TEXT_FIELDS[text] if uses.uses_text else ()))
    table = open_table(source.table, source.columns, source.poster_key, needed)
    known = table.known(_with_progress(progress, table.rows()), left_out)
    files = ImageFiles(TMDB, left_out, progress)
    posters = files.find(source.posters if uses.uses_poster else (), known.of_key)
    return SourceFilms(_table_films(table, known, posters, text), files.digest.hexdigest(), left_out)


def _find_samples(source: Source, declared: Schema, progress: Callable[[], None]) -> SourceFilms:
    """Find the samples of other data than TMDB's."""
    left_out = LeftOut()
    if source.is_catalogue:
        return SourceFilms(catalogue_samples(source.table.parent, declared), _NOTHING, left_out)
    if source.columns or source.poster_key != "tmdb_id":
        raise ValueError("--columns and --poster_key are for films; of other data its schema names the columns")
    samples, digest = table_samples(source.table, source.posters, declared, progress, left_out)
    return SourceFilms(samples, digest, left_out)


_NOTHING = hashlib.sha256().hexdigest()


def _with_progress(progress: Callable[[], None], things: Iterable[Thing]) -> Iterator[Thing]:
    for thing in things:
        progress()
        yield thing


def _catalogue_films(catalogue: Path, text: str) -> Iterator[tuple[int | str, Unlabelled]]:
    for row in read_rows(catalogue, ["tmdb_id", "title", "overview", "poster_status"]):
        poster = poster_file(catalogue, row["tmdb_id"]) if row["poster_status"] == "ok" else None
        yield row["tmdb_id"], Unlabelled({"poster": poster, "overview": film_text(row, text) or None})


def _table_films(table: FilmTable, known: Films, posters: Images, text: str) -> Iterator[tuple[int | str, Unlabelled]]:
    for film, cells in known.first_rows(table.rows()):
        row = {name: text_of(cells.get(name)) for name in ("title", "overview")}
        yield film, Unlabelled({"poster": image_in(posters, film), "overview": film_text(row, text) or None})
