"""Films to be predicted, from a catalogue or from a table with posters: what import finds there is found here."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from genre_dist.catalogue.catalogue import count_rows, movies_file, poster_file, read_rows
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import Look, TarMember, find_posters, refuse_compressed
from genre_dist.catalogue.tables import Films, FilmTable, open_table, text_of
from genre_dist.inference.prediction import TEXT_FIELDS, Unlabelled
from genre_dist.inference.trained_model import Run
from genre_dist.packing.choosing import film_text

Thing = TypeVar("Thing")


class Source(NamedTuple):
    """Where films come from: a catalogue's table, or any table with folders and tars of posters."""

    table: Path
    is_catalogue: bool
    posters: tuple[Path, ...] = ()
    columns: Mapping[str, str] = {}
    """Our names of columns -> the table's."""
    poster_key: str = "tmdb_id"


class Found(NamedTuple):
    """The films of a source, to be read once, in the order of their table; each film once."""

    films: Iterator[tuple[int, Unlabelled]]
    posters_sha256: str
    """Identifies the posters that were found for a table, by place, size and time."""
    left_out: LeftOut


def source_of(
    catalogue: Path | None, table: Path | None, posters: Sequence[Path], columns: Mapping[str, str], poster_key: str
) -> Source:
    """The films asked for. Raises ValueError if that is neither or both, or is not there."""
    if (catalogue is None) == (table is None):
        raise ValueError("say which films: --catalogue FOLDER, or --table FILE with --posters FOLDERS_OR_TARS")
    if catalogue is not None:
        if posters or columns:
            raise ValueError("--posters and --columns belong to a --table; a catalogue has its own")
        count_rows(catalogue)
        return Source(movies_file(catalogue), True)
    assert table is not None
    for path in (table, *posters):
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if path in posters and path.is_file():
            refuse_compressed(path)
    return Source(table, False, tuple(path.resolve() for path in posters), columns, poster_key)


def find_films(source: Source, run: Run, progress: Callable[[], None]) -> Found:
    """Find the films, with the text that the model was trained on; `progress` is called on the way.

    Memory holds two small entries a film of a table. Raises ValueError for what cannot be read, and for a table without
    the columns that the model needs.
    """
    text = run.facts["text"]["source"]
    if source.is_catalogue:
        return Found(_catalogue_films(source.table.parent, text), _NOTHING, LeftOut())
    uses = run.config.model
    left_out = LeftOut()
    needed = ("tmdb_id", *(TEXT_FIELDS[text] if uses.uses_text else ()))
    table = open_table(source.table, source.columns, source.poster_key, needed)
    known = table.known(_telling(progress, table.rows()), left_out)
    places: dict[int, tuple[Look, str | TarMember]] = {}
    digest = hashlib.sha256()
    for path in source.posters if uses.uses_poster else ():
        for poster in find_posters(path, known.of_key, left_out, progress):
            film = known.of_key[poster.key]
            if film in places and poster.look <= places[film][0]:
                left_out.add("further files for films that have a poster, left out", poster.where)
                continue
            place = poster.source if isinstance(poster.source, TarMember) else str(poster.source)  # smaller than a Path
            places[film] = poster.look, place
            status = (poster.source.tar if isinstance(poster.source, TarMember) else poster.source).stat()
            digest.update(f"{film} {place} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return Found(_table_films(table, known, places, text), digest.hexdigest(), left_out)


_NOTHING = hashlib.sha256().hexdigest()


def _telling(progress: Callable[[], None], things: Iterable[Thing]) -> Iterator[Thing]:
    for thing in things:
        progress()
        yield thing


def _catalogue_films(catalogue: Path, text: str) -> Iterator[tuple[int, Unlabelled]]:
    for row in read_rows(catalogue, ["tmdb_id", "title", "overview", "poster_status"]):
        poster = poster_file(catalogue, row["tmdb_id"]) if row["poster_status"] == "ok" else None
        yield row["tmdb_id"], Unlabelled(poster, film_text(row, text) or None)


def _table_films(
    table: FilmTable, known: Films, places: Mapping[int, tuple[Look, str | TarMember]], text: str
) -> Iterator[tuple[int, Unlabelled]]:
    for film, cells in known.first_rows(table.rows()):
        look, place = places.get(film, (Look.EMPTY, ""))
        poster = None if look is Look.EMPTY else place if isinstance(place, TarMember) else Path(place)
        row = {name: text_of(cells.get(name)) for name in ("title", "overview")}
        yield film, Unlabelled(poster, film_text(row, text) or None)
