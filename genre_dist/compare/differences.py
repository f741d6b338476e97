"""Per-sample differences: films on which one model gains or loses most, with titles, posters and texts."""

import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genre_dist.compare.results import Model, on_films
from genre_dist.metrics.choosing import log_losses, named_labels
from genre_dist.packing.posters import load_rgb
from genre_dist.packing.tokenizer import Tokenizer, tokenizer_of
from genre_dist.schema import TMDB
from genre_dist.storage import AnyPath
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.sample import load_about, load_tokens
from genre_dist.tars.sample_reader import reader_type

LONGEST_TITLE = 300
LONGEST_TEXT = 400
THUMBNAIL = (160, 240)  # pixels; posters have the proportions 2:3, and shards may hold them squashed to squares


class FilmInfo(NamedTuple):
    """What a report shows of a film."""

    title: str
    year: str
    images: dict[str, bytes]
    """Small JPEGs by field, of the images that can be read."""
    texts: dict[str, str]
    """By field, the texts as their tokens spell them, cut to LONGEST_TEXT letters."""

    @property
    def poster(self) -> bytes | None:
        """The first of them."""
        return next(iter(self.images.values()), None)


def largest_differences(
    one: Model, other: Model, ids: NDArray[np.int64], count: int
) -> dict[str, list[dict[str, Any]]]:
    """The films where `one` is furthest ahead of `other`, and furthest behind.

    A film's F1 counts the genres that at least half of the seeds name at their fitted thresholds; log loss, a mean over
    the seeds, breaks ties.
    """
    sides = [_per_film(model, ids) for model in (one, other)]
    labels, genres = on_films(one.results[0], ids).labels, one.results[0].genres
    gain = _f1(sides[0].named, labels) - _f1(sides[1].named, labels)
    order = np.lexsort((sides[1].loss - sides[0].loss, gain))  # rising gain in F1, then in log loss
    films = {}
    for name, sign, rows in (("wins", 1, order[::-1][:count]), ("losses", -1, order[:count])):
        films[name] = [
            {
                "tmdb_id": int(ids[row]),
                "gain_in_f1": float(gain[row]),
                "genres": _names(genres, labels[row]),
                "one": _names(genres, sides[0].named[row]),
                "other": _names(genres, sides[1].named[row]),
            }
            for row in rows
            if sign * gain[row] > 0
        ]
    return films


class _Side(NamedTuple):
    named: NDArray[np.bool_]  # [films, genres], by at least half of the seeds
    loss: NDArray[np.float64]  # [films], log loss


def _per_film(model: Model, ids: NDArray[np.int64]) -> _Side:
    votes = np.zeros(on_films(model.results[0], ids).labels.shape)
    loss = np.zeros(len(ids))
    for result in model.results:
        logits, labels, thresholds, choose = on_films(result, ids)
        votes += named_labels(logits, choose, thresholds)
        loss += log_losses(logits, labels, choose).mean(1)
    return _Side(votes >= len(model.results) / 2, loss / len(model.results))


def _f1(named: NDArray[np.bool_], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    return 2 * (named & labels).sum(1) / np.maximum(named.sum(1) + labels.sum(1), 1)


def _names(genres: list[str], chosen: NDArray[np.bool_]) -> list[str]:
    return [genre for genre, taken in zip(genres, chosen, strict=True) if taken]


def read_film_info(shards: AnyPath | str, split: str, films: Iterable[int]) -> dict[int, FilmInfo]:
    """Title, year, posters and texts of those films that the shards have.

    Raises ValueError if there are no shards, or the vocabulary or tokenizer that spells their tokens is missing.
    """
    manifest = load_manifest(shards)
    tokenizer = tokenizer_of(manifest.folder, manifest.text)
    reader, wanted = reader_type(manifest)(manifest, split, (), max_tokens=1), np.array(sorted(set(films)), np.int64)
    infos = {}
    for number in range(len(reader.index.sizes)):
        rows = reader.index.rows_of(number)
        chosen = np.isin(reader.index.ids(rows), wanted)
        for found in reader.samples(Rows(rows.shard[chosen], rows.row[chosen])):
            with suppress(ValueError, KeyError):  # a damaged film has only its id in the report
                infos[found.id] = _film_info(found.members, found.key, manifest, tokenizer)
    return infos


def _film_info(members: Mapping[str, memoryview], key: str, manifest: Manifest, tokenizer: Tokenizer) -> FilmInfo:
    """A film's title and year, or the id of another sample, its images and its texts."""
    about, images, texts = load_about(members["json"]), dict[str, bytes](), dict[str, str]()
    for field in manifest.declared.fields:
        if field.extension not in members:
            continue
        with suppress(ValueError):  # an image or a text that cannot be read
            if field.kind == "text":
                texts[field.name] = _cut(tokenizer.text(load_tokens(members[field.extension], tokenizer.size)))
            elif field.kind == "image":
                is_squashed_poster = manifest.declared == TMDB and manifest.image["fit"] == "squash"
                images[field.name] = thumbnail(load_rgb(bytes(members[field.extension]))[0], is_squashed_poster)
    title, date = (str(about.get(name) or "") for name in ("title", "release_date"))
    return FilmInfo(title[:LONGEST_TITLE] or key, date[:4], images, texts)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT].rsplit(' ', 1)[0]}\N{HORIZONTAL ELLIPSIS}"


def thumbnail(pixels: NDArray[np.uint8], squashed: bool) -> bytes:
    """A small JPEG in a poster's own proportions."""
    width, height = THUMBNAIL
    picture = Image.fromarray(pixels).resize((width, height) if squashed else (width, width), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=78, optimize=True)
    return file.getvalue()
