"""Import: any table of films (Parquet, CSV, JSON lines) and any folders or tars of posters become a catalogue.

Three passes, each streaming: the table for its ids (so that a bad table is refused before anything is written), the
posters, and the table again to write the rows with what became of their posters. Memory holds two small entries a film.
"""

import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from genre_dist.acquire.catalogue import (
    CatalogueWriter,
    movies_file,
    partial_file,
    poster_file,
    write_poster,
)
from genre_dist.acquire.tables import (
    TEXT_COLUMNS,
    film_id,
    genre_ids,
    number_of,
    release_date,
    source_columns,
    table_rows,
    text_of,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
BROKEN_TAR = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class ImportReport(NamedTuple):
    """What an import did, as counts of films, except `unknown_genres` (name -> occurrences) and posters."""

    rows: int
    with_poster: int
    without_known_genre: int
    duplicates: int
    unknown_genres: dict[str, int]
    posters_without_row: int


class _Poster(NamedTuple):
    """The poster of one film, as copied into the catalogue."""

    size: int
    sha256: str


# A poster on offer: its name without suffix, words that say where it is, and the file.
_Candidate = tuple[str, str, Path | IO[bytes]]


def import_catalogue(
    table: Path,
    posters: Sequence[Path],
    out: Path,
    columns: Mapping[str, str] = {},
    poster_key: str = "tmdb_id",
    overwrite: bool = False,
) -> ImportReport:
    """Make a catalogue in `out` from a table and from posters, which are found by file name.

    `table` is .parquet, .csv (UTF-8, with a heading) or .jsonl. `columns` maps our column names to the table's. Each of
    `posters` is a folder, searched with its subfolders, or a tar; the poster of a film is the first file whose name
    without suffix is the film's value in column `poster_key`. `overwrite` replaces a catalogue already in `out`.

    Raises ValueError, naming file, column or row, for whatever cannot be read. A broken tar leaves the posters before
    the break, each whole, but no movies.parquet.
    """
    _check_places(table, posters, out, overwrite)
    source = source_columns(table, columns, poster_key)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        film_of_key, found, duplicates = _read_ids(
            progress.track(table_rows(table, source), description="ids"), table, source
        )
        if overwrite:
            movies_file(out).unlink(missing_ok=True)
            shutil.rmtree(out / "posters", ignore_errors=True)
        strangers = 0
        for path in posters:
            candidates = _tar_posters(path) if path.is_file() else _folder_posters(path)
            files = progress.track(candidates, description=path.name)
            strangers += _take_posters(files, path, out, film_of_key, found)
        rows = progress.track(table_rows(table, source), description="films", total=len(found))
        return _write_films(rows, table, source, out, found)._replace(
            duplicates=duplicates, posters_without_row=strangers
        )


def _check_places(table: Path, posters: Sequence[Path], out: Path, overwrite: bool) -> None:
    for path in (table, *posters):
        if not path.exists():
            raise ValueError(f"{path} does not exist; check --table and --posters")
        if path.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{path} lies inside --out {out}, which this import writes; give another --out")
    if movies_file(out).exists() and not overwrite:
        raise ValueError(f"{out} already holds a catalogue; give another --out, or --overwrite to replace it")


def _read_ids(
    rows: Iterable[dict[str, Any]], table: Path, source: Mapping[str, str]
) -> tuple[dict[str, int], dict[int, _Poster | None], int]:
    """Poster key -> film, an entry without poster for every film, and how many rows repeat a film."""
    film_of_key: dict[str, int] = {}
    found: dict[int, _Poster | None] = {}
    duplicates = 0
    by_id = source["key"] == source["tmdb_id"]
    for number, row in enumerate(rows, start=1):
        film = film_id(row.get(source["tmdb_id"]), table, number)
        if film in found:
            duplicates += 1
            continue
        found[film] = None
        key = str(film) if by_id else text_of(row.get(source["key"]))
        if key:
            film_of_key.setdefault(key, film)
    return film_of_key, found, duplicates


def _write_films(
    rows: Iterable[dict[str, Any]], table: Path, source: Mapping[str, str], out: Path, found: dict[int, _Poster | None]
) -> ImportReport:
    unknown: Counter[str] = Counter()
    films = with_poster = without_genre = 0
    with CatalogueWriter(out) as writer:
        for number, row in enumerate(rows, start=1):
            film = film_id(row.get(source["tmdb_id"]), table, number)
            if film not in found:  # written already: the first row of a film wins
                continue
            poster = found.pop(film)
            genres = genre_ids(row.get(source["genre_ids"]), unknown)
            writer.add(_film(film, genres, row, source, poster))
            films += 1
            with_poster += poster is not None and poster.size > 0
            without_genre += not genres
    return ImportReport(films, with_poster, without_genre, 0, dict(unknown.most_common()), 0)


def _film(
    film: int, genres: list[int], row: Mapping[str, Any], source: Mapping[str, str], poster: _Poster | None
) -> dict[str, Any]:
    cell = {name: row.get(column) for name, column in source.items()}
    status = "none" if poster is None else "ok" if poster.size else "failed: the file is empty"
    return {
        "tmdb_id": film,
        **{name: text_of(cell.get(name)) for name in TEXT_COLUMNS},
        "genre_ids": genres,
        "release_date": release_date(cell.get("release_date")),
        "popularity": number_of(cell.get("popularity")),
        "adult": text_of(cell.get("adult")).lower() in ("true", "1"),
        "poster_status": status,
        "poster_bytes": poster.size if poster else 0,
        "poster_sha256": poster.sha256 if poster else "",
        "fetched_at": None,
    }


def _take_posters(
    files: Iterable[_Candidate], path: Path, out: Path, film_of_key: Mapping[str, int], found: dict[int, _Poster | None]
) -> int:
    """Copy the posters that belong to a film which has none yet; the return value counts those of no film at all."""
    strangers = 0
    where = "its beginning"
    try:
        for name, where, source in files:  # noqa: B007 (the handler below reads it)
            film = film_of_key.get(name)
            strangers += film is None
            if film is not None and found[film] is None:
                found[film] = _link(source, out, film) if isinstance(source, Path) else _copy(source, out, film)
    except BROKEN_TAR as error:
        raise ValueError(f"{path} is damaged at or after {where} ({error}); fetch it again") from error
    return strangers


def _is_poster(name: PurePath) -> bool:
    return name.suffix.lower() in IMAGE_SUFFIXES and not name.name.startswith(".")


def _tar_posters(path: Path) -> Iterator[_Candidate]:
    """The image files of a tar, in order. Names serve to find the film and never become paths; links are not read."""
    try:
        tar = tarfile.open(path)  # noqa: SIM115 (the with below; an archive that cannot be opened is another error)
    except BROKEN_TAR as error:
        raise ValueError(
            f"{path} is no tar, or cut off at its start; unpack other archives and give the folder"
        ) from error
    with tar:
        while (member := tar.next()) is not None:
            name = PurePosixPath(member.name)
            if member.isreg() and _is_poster(name) and (file := tar.extractfile(member)) is not None:
                yield name.stem, f"member {member.name!r} (byte {member.offset})", file
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member: memory that would grow with the archive
        # tarfile takes a damaged header, or none, for the end of the archive. The end is a block of zeros.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset}")


def _copy(source: IO[bytes], out: Path, film: int) -> _Poster:
    return _Poster(*write_poster(out, film, source))


def _folder_posters(folder: Path) -> Iterator[_Candidate]:
    for parent, folders, names in os.walk(folder):
        folders.sort()  # of two files for one film the first wins: always the same one
        for name in sorted(names):
            path = Path(parent, name)
            if _is_poster(path) and path.is_file():
                yield path.stem, str(path), path


def _link(source: Path, out: Path, film: int) -> _Poster:
    """A second name for the file where the file system allows it, which needs no space; else a copy."""
    target = poster_file(out, film)
    partial = partial_file(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), partial)
    except OSError:
        with source.open("rb") as file:
            return _copy(file, out, film)
    partial.replace(target)
    partial.unlink(missing_ok=True)  # a rename onto another name of the same file leaves both
    with target.open("rb") as file:
        return _Poster(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
