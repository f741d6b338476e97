"""Genres of single films or small batches, from a poster, a text, or both."""

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from genre_dist.catalogue.poster_search import LARGEST_BYTES, TarMember
from genre_dist.inference.trained_model import Run
from genre_dist.metrics.choosing import named_labels, probabilities
from genre_dist.packing.layout import film_text
from genre_dist.packing.posters import load_rgb, square
from genre_dist.stream.batch import BLANK, Batch
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.stream.sample import cut, pad
from genre_dist.tmdb.api import Tmdb
from genre_dist.tmdb.fetch_posters import download_poster
from genre_dist.tmdb.web import FetchError, Web

POSTER_SIZE = "w342"
TEXT_FIELDS = {"overview": ("overview",), "title": ("title",), "both": ("title", "overview")}
"""The fields that form the text, by the shards' `text.source`."""
NO_TEXT = {"overview": "no overview", "title": "no title", "both": "neither title nor overview"}


class Unlabelled(NamedTuple):
    """A film without labels: its poster as a file or bytes, and its text."""

    poster: Path | TarMember | bytes | None
    text: str | None


class Prediction(NamedTuple):
    """A label, its probability, and whether it is predicted: above its threshold, or the likeliest."""

    genre: str
    probability: float
    named: bool


def film_of_options(run: Run, poster: Path | None, overview: str | None, title: str | None) -> Unlabelled:
    """A film from command-line options. Raises ValueError if an option that the model needs is missing.

    A model with learned vectors for missing fields needs one of its fields.
    """
    uses, source = run.config.model, run.metadata["text"]["source"]
    given = {"poster": poster, "overview": overview, "title": title}
    needed = (*(("poster",) if uses.uses_poster else ()), *(TEXT_FIELDS[source] if uses.uses_text else ()))
    missing = [f"--{name}" for name in needed if given[name] is None]
    if missing and not (uses.learns_missing and len(missing) < len(needed)):
        how = " or " if uses.learns_missing else " and "
        raise ValueError(f"this model was trained on {' and '.join(needed)}; pass {how.join(missing)} as well")
    text = film_text({"overview": overview, "title": title}, source)
    return Unlabelled(poster, None if uses.learns_missing and not text else text)


def predict(
    run: Run, thresholds: NDArray[np.float64] | None, film: Unlabelled, device: torch.device
) -> list[Prediction]:
    """Labels by descending probability, named above their fitted thresholds, or above one half without them.

    Where a sample has exactly one label, probabilities are the softmax's and the likeliest label is named. Raises
    ValueError if the film lacks a text or poster that the model needs, or the poster is no image.
    """
    choose = run.declared.labels.choose
    pixels = _pixels(run, film.poster) if run.model.images and film.poster is not None else None
    if reason := why_left_out(run, pixels is not None, film.text is not None):
        raise ValueError(f"the {run.declared.sample} has {reason}, which this model was trained on")
    logits = predict_logits(run, [pixels], [film.text], device)
    named, probable = named_labels(logits, choose, thresholds)[0], probabilities(logits, choose)[0]
    predictions = [
        Prediction(label, float(probability), bool(above))
        for label, probability, above in zip(run.genres, probable, named, strict=True)
    ]
    return sorted(predictions, key=lambda one: -one.probability)


def why_left_out(run: Run, has_image: bool, has_text: bool) -> str | None:
    """What a sample lacks that the model cannot do without; None if it can predict the sample."""
    lacks = ["no poster"] if run.model.images and not has_image else []
    lacks += [NO_TEXT[run.metadata["text"]["source"]]] if run.model.texts and not has_text else []
    if run.config.model.learns_missing and len(lacks) < len(run.model.parts):
        return None
    return " and ".join(lacks) or None


def predict_logits(
    run: Run, pixels: Sequence[NDArray[np.uint8] | None], texts: Sequence[str | None], device: torch.device
) -> NDArray[np.float32]:
    """Logits [films, genres]; `pixels` are those of `film_pixels`. None where a film lacks a field."""
    batch = _batch(run, pixels, texts)
    with torch.inference_mode():
        return run.model(to_device(batch, device, whole_pixels(run.config.data)).fields).float().cpu().numpy()


def _batch(run: Run, pixels: Sequence[NDArray[np.uint8] | None], texts: Sequence[str | None]) -> Batch:
    """A batch of the model's inputs, as a reader makes it."""
    n, size = len(texts), int(run.metadata["image"]["size"])
    arrays: dict[str, Any] = {}
    given: dict[str, Sequence[Any]] = {}
    for part in run.model.images:
        given[part] = pixels
        blank = np.full((size, size, 3), BLANK, np.uint8)
        arrays[f"{part}.images"] = np.stack([blank if image is None else image for image in pixels])
    for part in run.model.texts:
        given[part] = texts
        most, tokenizer = run.config.data.max_tokens, run.tokenizer
        encoded = [cut(tokenizer.encode(text or ""), most, tokenizer.closing) for text in texts]
        arrays[f"{part}.tokens"], arrays[f"{part}.lengths"] = pad(encoded)
    if run.config.model.learns_missing:
        arrays |= {f"{part}.has": np.array([value is not None for value in own]) for part, own in given.items()}
    return Batch(np.arange(n), np.zeros((n, len(run.genres)), np.float32), np.ones(n, np.float32), arrays)


def film_pixels(run: Run, films: Sequence[Unlabelled], pool: Executor) -> list[NDArray[np.uint8] | str]:
    """Each film's poster in the shape of the shards, uint8 [size, size, 3], or the reason for its absence."""

    def one(film: Unlabelled) -> NDArray[np.uint8] | str:
        try:
            return "no poster" if film.poster is None else _pixels(run, film.poster)
        except (ValueError, OSError) as error:
            return str(error)

    return list(pool.map(one, films))


def film_of_tmdb(run: Run, number: int, key: str, api_url: str, image_url: str) -> tuple[str, Unlabelled]:
    """A film's title, poster and text from TMDB. Raises ValueError if a request fails."""
    web = Web(rate=40, concurrency=1)
    try:
        answer = Tmdb(web, key, api_url).movie(number)
        path = answer.get("poster_path") if run.config.model.uses_poster else None
        poster = download_poster(web, image_url, POSTER_SIZE, path) if path else None
    except FetchError as error:
        raise ValueError(f"film {number} cannot be had from TMDB: {error}") from None
    texts = {name: answer.get(name) for name in ("title", "overview")}
    text = film_text(texts, run.metadata["text"]["source"]) or None
    return answer.get("title") or str(number), Unlabelled(poster, text)


def _pixels(run: Run, poster: Path | TarMember | bytes) -> NDArray[np.uint8]:
    """The poster in the shape of the shards, uint8 [size, size, 3]."""
    if isinstance(poster, Path) and not poster.is_file():
        raise ValueError(f"{poster}: no such poster")
    if isinstance(poster, Path) and poster.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{poster}: larger than {LARGEST_BYTES >> 20} MiB")
    try:
        pixels, _ = load_rgb(poster if isinstance(poster, bytes) else poster.read_bytes())
    except ValueError as error:
        name = "the poster" if isinstance(poster, bytes) else poster
        raise ValueError(f"{name}: {error}") from None
    return square(pixels, run.metadata["image"]["size"], run.metadata["image"]["fit"])
