"""Films one after the other, from shards or from a catalogue. Memory holds one film at a time."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.genres import INDEX_OF_ID
from genre_dist.packing.catalogue_rows import COLUMNS, film_text
from genre_dist.packing.tokenizer import Tokenizer, tokenizer_of
from genre_dist.packing.vocabulary import tokenise
from genre_dist.splits import split_of
from genre_dist.stream.manifest import SPLITS, Manifest
from genre_dist.stream.sample import labels_in, load_about, load_tokens
from genre_dist.tars.sample_reader import reader_type


class Film(NamedTuple):
    """A film of a shard or of a catalogue, with its words."""

    id: int
    split: str
    genres: tuple[int, ...]
    """Indexes into the list of genres: the manifest's or, from a catalogue, TMDB's."""
    text: str
    """The original text; '' from a shard, which keeps only tokens."""
    words: list[str] | None
    """None for a film without a text."""
    release_date: str
    """'', YYYY or YYYY-MM-DD."""
    poster: bytes | None
    fault: str | None = None
    """The reason why the film could not be read; then it has no genres and no words."""
    key: str = ""
    """The id as another data set than TMDB's has it."""


def shard_films(manifest: Manifest, splits: Sequence[str] = SPLITS, members: tuple[str, ...] = ()) -> Iterator[Film]:
    """The films of some splits that have the members, in stored order; a film that cannot be read has a `fault`.

    Words outside the vocabulary come back as <unk>; those of a tokenizer in lower case, without punctuation.
    """
    tokenizer, declared = tokenizer_of(manifest.folder, manifest.text), manifest.declared
    columns = {label: number for number, label in enumerate(manifest.label_ids)}
    for split in splits:
        reader = reader_type(manifest)(manifest, split, members, max_tokens=1)
        for shard in range(len(reader.index.sizes)):
            for found in reader.samples(reader.index.rows_of(shard)):
                try:
                    if found.error is not None:
                        raise found.error
                    labels = tuple(columns[label] for label in labels_in(found.members["json"], declared))
                    packed = Film(found.id, split, labels, "", None, "", None, key=found.key)
                    yield _packed(found.members, packed, manifest, tokenizer)
                except (ValueError, KeyError) as error:
                    what = f"no {declared.label} or member {error}" if isinstance(error, KeyError) else str(error)
                    yield Film(found.id, split, (), "", None, "", None, f"{found.where}: {what}")


def _packed(members: Mapping[str, memoryview], film: Film, manifest: Manifest, tokenizer: Tokenizer) -> Film:
    """A film with the words of its first text, and its first image."""
    words, poster = None, None
    for field in manifest.declared.fields:
        member = members.get(field.extension)
        if member is not None and field.kind == "text" and words is None:
            words = tokenizer.words(load_tokens(member, tokenizer.size))
        elif member is not None and field.kind == "image" and poster is None:
            poster = bytes(member)
    date = load_about(members["json"]).get("release_date")
    return film._replace(words=words, poster=poster, release_date=date if isinstance(date, str) else "")


def catalogue_films(catalogue: Path, text: str, posters: bool = True) -> Iterator[Film]:
    """All films of a catalogue, with their `text` (overview, title or both); a film may have no known genre."""
    for row in read_rows(catalogue, COLUMNS):
        film = int(row["tmdb_id"])
        genres = tuple(INDEX_OF_ID[genre] for genre in row["genre_ids"] or () if genre in INDEX_OF_ID)
        text_of_film = film_text(row, text)
        poster = None
        if posters and row["poster_status"] == "ok":
            try:
                poster = poster_file(catalogue, film).read_bytes()
            except OSError:
                poster = b""  # counts as unreadable, like a damaged file
        yield Film(
            film,
            split_of(film),
            genres,
            text_of_film,
            tokenise(text_of_film) if text_of_film else None,
            row["release_date"] or "",
            poster,
        )
