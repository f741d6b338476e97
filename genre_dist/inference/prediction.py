"""Genres of single films or small batches, from a poster, a text, or both."""

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from genre_dist.catalogue.poster_search import LARGEST_BYTES, TarMember
from genre_dist.inference.trained_model import Run
from genre_dist.packing.layout import film_text
from genre_dist.packing.posters import load_rgb, square
from genre_dist.stream.images import whole
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
    """A genre, its probability, and whether its logit is above the threshold."""

    genre: str
    probability: float
    named: bool


def film_of_options(run: Run, poster: Path | None, overview: str | None, title: str | None) -> Unlabelled:
    """A film from command-line options. Raises ValueError if an option that the model needs is missing."""
    uses, source = run.config.model, run.metadata["text"]["source"]
    given = {"poster": poster, "overview": overview, "title": title}
    needed = (*(("poster",) if uses.uses_poster else ()), *(TEXT_FIELDS[source] if uses.uses_text else ()))
    if missing := [f"--{name}" for name in needed if given[name] is None]:
        raise ValueError(f"this model was trained on {' and '.join(needed)}; pass {' and '.join(missing)} as well")
    return Unlabelled(poster, film_text({"overview": overview, "title": title}, source))


def predict(
    run: Run, thresholds: NDArray[np.float64] | None, film: Unlabelled, device: torch.device
) -> list[Prediction]:
    """Genres by descending probability, named above their fitted thresholds, or above one half without them.

    Raises ValueError if the film lacks a text or poster that the model needs, or the poster is no image.
    """
    uses = run.config.model
    if uses.uses_text and film.text is None:
        raise ValueError(f"the film has {NO_TEXT[run.metadata['text']['source']]}, which this model was trained on")
    if uses.uses_poster and film.poster is None:
        raise ValueError("the film has no poster, which this model was trained on")
    pixels = [_pixels(run, film.poster)] if uses.uses_poster and film.poster is not None else []
    logits = predict_logits(run, pixels, [film.text or ""], device)[0]
    named = logits > (0 if thresholds is None else thresholds)
    predictions = [
        Prediction(genre, float(1 / (1 + np.exp(-np.float64(logit)))), bool(above))
        for genre, logit, above in zip(run.genres, logits, named, strict=True)
    ]
    return sorted(predictions, key=lambda one: -one.probability)


def predict_logits(
    run: Run, pixels: Sequence[NDArray[np.uint8]], texts: Sequence[str], device: torch.device
) -> NDArray[np.float32]:
    """Logits [films, genres]; `pixels` are those of `film_pixels`, without films that lack an input."""
    images = tokens = lengths = None
    if run.config.model.uses_poster:
        images = whole(torch.from_numpy(np.stack(pixels)).to(device), run.config.data.image_size)
    if run.config.model.uses_text:
        most = run.config.data.max_tokens
        tokenizer = run.tokenizer
        text, length = pad([cut(tokenizer.encode(one), most, tokenizer.closing) for one in texts])
        tokens, lengths = torch.from_numpy(text).long().to(device), torch.from_numpy(length)
    with torch.inference_mode():
        return run.model(images, tokens, lengths).float().cpu().numpy()


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
