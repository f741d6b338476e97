"""Labels of single samples or small batches, from the fields that the model takes."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from genre_dist.catalogue.poster_search import LARGEST_BYTES, TarMember
from genre_dist.catalogue.sample_rows import number_of
from genre_dist.inference.trained_model import Run
from genre_dist.metrics.choosing import named_labels, probabilities
from genre_dist.packing.catalogue_rows import film_text
from genre_dist.packing.posters import load_rgb, square
from genre_dist.schema import TMDB, Field, with_article
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
    """A sample without labels."""

    values: Mapping[str, Any]
    """Field -> an image as a file or bytes, a text, or numbers; None for what it lacks."""


class Prediction(NamedTuple):
    """A label, its probability, and whether it is predicted: above its threshold, or the likeliest."""

    genre: str
    probability: float
    named: bool


def sample_of_options(run: Run, given: Mapping[str, str]) -> Unlabelled:
    """A sample from its fields by name: a text, the path of an image, numbers between commas.

    A number may also be given by its column, and the title of a film by `title`. Raises ValueError for an unknown name,
    for what is no number, and for a field that the model needs and is not given; a model with learned vectors for
    missing fields needs one of its fields.
    """
    declared, uses, source = run.declared, run.config.model, run.metadata["text"]["source"]
    is_film, taken = declared == TMDB, uses.members(declared)
    columns = {field.name: field.columns for field in declared.fields if field.kind == "numbers"}
    known = [*declared.by_name, *(["title"] if is_film else []), *chain(*columns.values())]
    if unknown := [name for name in given if name not in known]:
        has = ", ".join(dict.fromkeys(known))
        raise ValueError(f"--field {unknown[0][:60]}: {with_article(declared.sample)} has {has}")
    needed = list[str]()
    for field in declared.fields:
        if field.name in taken:
            needed += TEXT_FIELDS[source] if is_film and field.kind == "text" else [field.name]
    missing = [name for name in needed if given.keys().isdisjoint((name, *columns.get(name, ())))]
    if missing and not (uses.learns_missing and len(missing) < len(needed)):
        how = " or " if uses.learns_missing else " and "
        options = how.join(f"--{name}" if is_film else f"--field {name}=..." for name in missing)
        raise ValueError(f"this model was trained on {' and '.join(needed)}; pass {options} as well")
    values = dict[str, Any]()
    for field in declared.fields:
        value: Any = given.get(field.name)
        if field.kind == "numbers":
            value = _numbers(field, value, {name: cell for name, cell in given.items() if name not in declared.by_name})
        elif field.kind == "image":
            value = None if value is None else Path(value)
        else:
            value = film_text({"title": None, "overview": None, **given}, source) if is_film else (value or "").strip()
        values[field.name] = None if value == "" and uses.learns_missing else value
    return Unlabelled(values)


def _numbers(field: Field, value: str | None, by_column: Mapping[str, str]) -> list[float] | None:
    """A field's numbers, NaN where one is blank; None if all are. Raises ValueError for what is no number."""
    cells = [""] * len(field.columns) if value is None else value.split(",")
    if len(cells) != len(field.columns):
        raise ValueError(
            f"--field {field.name}={value}: {len(cells)} numbers, where {', '.join(field.columns)} are needed between "
            "commas; leave a missing one blank"
        )
    named = zip(field.columns, cells, strict=True)
    numbers = [number_of(by_column.get(column, cell), column, f"--field {field.name}") for column, cell in named]
    return None if all(map(math.isnan, numbers)) else numbers


def predict(
    run: Run, thresholds: NDArray[np.float64] | None, film: Unlabelled, device: torch.device
) -> list[Prediction]:
    """Labels by descending probability, named above their fitted thresholds, or above one half without them.

    Where a sample has exactly one label, probabilities are the softmax's and the likeliest label is named. Raises
    ValueError if the sample lacks a field that the model needs, or an image cannot be read.
    """
    choose = run.declared.labels.choose
    prepared = prepare(run, film)
    for name, problem in prepared.lacking.items():
        if film.values.get(name) is not None:
            raise ValueError(problem)
    if reason := why_left_out(run, prepared):
        raise ValueError(f"the {run.declared.sample} has {reason}, which this model was trained on")
    logits = predict_logits(run, [prepared], device)
    named, probable = named_labels(logits, choose, thresholds)[0], probabilities(logits, choose)[0]
    predictions = [
        Prediction(label, float(probability), bool(above))
        for label, probability, above in zip(run.genres, probable, named, strict=True)
    ]
    return sorted(predictions, key=lambda one: -one.probability)


class Prepared(NamedTuple):
    """A sample as a batch takes it."""

    values: dict[str, Any]
    """Field -> pixels in the shape of the shards uint8 [size, size, 3], a text, or numbers."""
    lacking: dict[str, str]
    """Field of the model that the sample lacks, or that cannot be read -> why, in the order of the schema."""


def prepare(run: Run, sample: Unlabelled) -> Prepared:
    """Decode a sample's images and look what it lacks."""
    prepared, taken = Prepared({}, {}), run.config.model.members(run.declared)
    for field in run.declared.fields:
        value = sample.values.get(field.name) if field.name in taken else None
        if field.name in taken and value is None:
            is_films_text = run.declared == TMDB and field.kind == "text"
            lacks = NO_TEXT[run.metadata["text"]["source"]] if is_films_text else f"no {field.name}"
            prepared.lacking[field.name] = lacks
        elif value is not None and field.kind == "image":
            try:
                prepared.values[field.name] = _pixels(run, value, field.name)
            except (ValueError, OSError) as error:
                prepared.lacking[field.name] = str(error)
        elif value is not None:
            prepared.values[field.name] = value
    return prepared


def why_left_out(run: Run, prepared: Prepared) -> str | None:
    """What a sample lacks that the model cannot do without; None if it can predict the sample."""
    if run.config.model.learns_missing and len(prepared.lacking) < len(run.model.parts):
        return None
    return next(iter(prepared.lacking.values()), None)


def predict_logits(run: Run, samples: Sequence[Prepared], device: torch.device) -> NDArray[np.float32]:
    """Logits [samples, labels]."""
    inputs = to_device(_batch(run, samples), device, whole_pixels(run.config.data))
    with torch.inference_mode():
        return run.model(inputs.fields).float().cpu().numpy()


def _batch(run: Run, samples: Sequence[Prepared]) -> Batch:
    """A batch of the model's inputs, as a reader makes it."""
    n, arrays = len(samples), dict[str, Any]()
    for field in run.config.model.fields(run.declared):
        values = [sample.values.get(field.name) for sample in samples]
        arrays |= {f"{field.part}.{kind}": array for kind, array in _arrays(run, field, values).items()}
        if run.config.model.learns_missing:
            arrays[f"{field.part}.has"] = np.array([value is not None for value in values])
    return Batch(np.arange(n), np.zeros((n, len(run.genres)), np.float32), np.ones(n, np.float32), arrays)


def _arrays(run: Run, field: Field, values: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """A field's arrays by kind; blank where a value is None."""
    if field.kind == "image":
        size = int(run.metadata["image"]["size"])
        blank = np.full((size, size, 3), BLANK, np.uint8)
        return {"images": np.stack([blank if image is None else image for image in values])}
    if field.kind == "text":
        most, tokenizer = run.config.data.max_tokens, run.tokenizer
        tokens, lengths = pad([cut(tokenizer.encode(text or ""), most, tokenizer.closing) for text in values])
        return {"tokens": tokens, "lengths": lengths}
    moments = run.metadata["numbers"][field.name]
    missing = [math.nan] * len(field.columns)
    numbers = np.array([missing if row is None else row for row in values], np.float32)
    mean, deviation = (np.array(moments[what], np.float32) for what in ("mean", "std"))
    return {"numbers": (numbers - mean) / deviation}


def film_of_tmdb(run: Run, number: int, key: str, api_url: str, image_url: str) -> tuple[str, Unlabelled]:
    """A film's title, poster and text from TMDB. Raises ValueError if a request fails or for other data."""
    if run.declared != TMDB:
        raise ValueError(f"--tmdb_id is for models of films; give {with_article(run.declared.sample)} by its --field")
    web = Web(rate=40, concurrency=1)
    try:
        answer = Tmdb(web, key, api_url).movie(number)
        path = answer.get("poster_path") if run.config.model.uses_poster else None
        poster = download_poster(web, image_url, POSTER_SIZE, path) if path else None
    except FetchError as error:
        raise ValueError(f"film {number} cannot be had from TMDB: {error}") from None
    texts = {name: answer.get(name) for name in ("title", "overview")}
    text = film_text(texts, run.metadata["text"]["source"]) or None
    return answer.get("title") or str(number), Unlabelled({"poster": poster, "overview": text})


def _pixels(run: Run, poster: Path | TarMember | bytes, name: str) -> NDArray[np.uint8]:
    """The image in the shape of the shards, uint8 [size, size, 3]."""
    if isinstance(poster, Path) and not poster.is_file():
        raise ValueError(f"{poster}: no such {name}")
    if isinstance(poster, Path) and poster.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{poster}: larger than {LARGEST_BYTES >> 20} MiB")
    try:
        pixels, _ = load_rgb(poster if isinstance(poster, bytes) else poster.read_bytes())
    except ValueError as error:
        raise ValueError(f"{f'the {name}' if isinstance(poster, bytes) else poster}: {error}") from None
    return square(pixels, run.metadata["image"]["size"], run.metadata["image"]["fit"])
