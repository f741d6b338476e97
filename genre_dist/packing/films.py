"""Films one after the other, from shards or from a catalogue, for what looks at all of them. One is held at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.genres import INDEX_OF_ID
from genre_dist.packing.choosing import COLUMNS, film_text
from genre_dist.packing.splits import split_of
from genre_dist.packing.vocabulary import tokenise
from genre_dist.storage import opened
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import SPLITS, Manifest
from genre_dist.stream.sample import load_about, load_genres, load_tokens, read_members
from genre_dist.stream.words import load_words


class Film(NamedTuple):
    """A film with its words, wherever it came from."""

    id: int
    split: str
    genres: tuple[int, ...]
    """Places in the list of genres, the manifest's or, from a catalogue, TMDB's."""
    text: str
    """As it was written; known only from a catalogue."""
    words: list[str] | None
    """None: it has no text."""
    release_date: str
    """'', YYYY or YYYY-MM-DD."""
    poster: bytes | None
    fault: str | None = None
    """Why it could not be read; then it has no genres and no words."""


def shard_films(manifest: Manifest, splits: Sequence[str] = SPLITS, members: tuple[str, ...] = ()) -> Iterator[Film]:
    """The films of some splits that have the members, in stored order; one that cannot be read has a `fault`.

    A word outside the vocabulary reads <unk>.
    """
    places = {genre.id: place for place, genre in enumerate(manifest.genres)}
    words = list(load_words(manifest.folder / manifest.text["vocabulary"], manifest.text["vocabulary_sha256"]))
    for split in splits:
        index = SplitIndex(manifest, split, members)
        for number, shard in enumerate(index.shards):
            records = index.records(index.rows_of(number))
            path = manifest.folder / shard.file
            with opened(path) as file:
                for film, offset, length in zip(*(records[name].tolist() for name in _PLACE), strict=True):
                    try:
                        file.seek(offset)
                        yield _packed(read_members(file.read(length), film), film, split, places, words)
                    except (ValueError, KeyError) as error:
                        what = f"no genre or member {error}" if isinstance(error, KeyError) else str(error)
                        fault = f"{path}: film {film} at byte {offset}: {what}"
                        yield Film(film, split, (), "", None, "", None, fault)


_PLACE = ("id", "offset", "size")


def _packed(parts: dict[str, memoryview], film: int, split: str, places: dict[int, int], words: list[str]) -> Film:
    genres = tuple(places[genre] for genre in load_genres(parts["json"]))
    spelt = None
    if "tokens.npy" in parts:
        spelt = [words[token] for token in load_tokens(parts["tokens.npy"], len(words)).tolist()]
    date = load_about(parts["json"]).get("release_date")
    poster = bytes(parts["jpg"]) if "jpg" in parts else None
    return Film(film, split, genres, "", spelt, date if isinstance(date, str) else "", poster)


def catalogue_films(catalogue: Path, text: str, posters: bool = True) -> Iterator[Film]:
    """All films of a catalogue, with their `text` (overview, title or both); those without a known genre have none."""
    for row in read_rows(catalogue, COLUMNS):
        film = int(row["tmdb_id"])
        genres = tuple(INDEX_OF_ID[genre] for genre in row["genre_ids"] or () if genre in INDEX_OF_ID)
        spelt = film_text(row, text)
        poster = None
        if posters and row["poster_status"] == "ok":
            try:
                poster = poster_file(catalogue, film).read_bytes()
            except OSError:
                poster = b""  # as unreadable as a damaged one
        yield Film(
            film,
            split_of(film),
            genres,
            spelt,
            tokenise(spelt) if spelt else None,
            row["release_date"] or "",
            poster,
        )
