"""Explanation of a model: attributions for single films, and the ablation of each medium over a split."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.compare.differences import FilmInfo, read_film_info, thumbnail
from genre_dist.compare.results import read_result
from genre_dist.compare.shown_measures import SHOWN
from genre_dist.config import Config
from genre_dist.explain import explanation_figures as figures
from genre_dist.explain.ablation import ablate
from genre_dist.explain.attribution import Attribution, Explained, Explainer
from genre_dist.inference.evaluate_run import check_same_labels
from genre_dist.inference.trained_model import Run, load_run
from genre_dist.metrics.choosing import margins
from genre_dist.metrics.thresholds import load_thresholds
from genre_dist.pages import charts
from genre_dist.pages.rendering import write_page
from genre_dist.progress import progress_bar
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import TMDB, Choose, Schema, plural
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.sample import PADDING
from genre_dist.training.experiment import open_split

Value = TypeVar("Value")

ABLATED: dict[Choose, tuple[str, ...]] = {
    "many": ("micro_f1_fitted", "micro_f1", "macro_f1_fitted", "mean_average_precision"),
    "one": ("accuracy", "macro_f1", "mean_average_precision"),
}
"""The measures that are shown without a medium."""


def explain(
    folder: Path,
    out: Path,
    *,
    split: str,
    ids: Sequence[str],
    count: int,
    genres: int,
    shards: Path | None,
    ablation: bool,
    trust_code: bool,
) -> dict[str, Any]:
    """Explain films of a split and ablate each medium; writes index.html, explanation.json and PNGs into `out`.

    Without `ids`, the `count` most confident films are explained, each for another genre. `genres` is the number of
    genres explained per film, the most confident first. RAM holds one film's gradients and a window of encodings.
    Raises ValueError for films that the split lacks, and for shards of other genres or another vocabulary.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(folder, device, trust_code)
    manifest = load_manifest(shards or run.config.data.shards)
    check_same_labels(run, manifest)
    declared, choose = run.declared, run.declared.labels.choose
    thresholds = load_thresholds(folder, run.genres) if choose == "many" else None
    films = [_number_of(id, declared) for id in ids] or _surest(folder, split, count, thresholds)
    infos = read_film_info(manifest.folder, split, films)
    reader = open_split(_within_positions(run), manifest, split)
    explainer = Explainer(run.model, run.config.data.image_size, run.metadata["text"].get("padding") or PADDING)
    with progress_bar() as progress:
        explained = [
            _explain_film(run, reader.read(rows), explainer, thresholds, genres, infos)
            for rows in progress.track(_rows_of_films(reader, films), description=declared.samples)
        ]
    is_film, films_data = declared == TMDB, [_film_data(film) for film in explained]
    explanation: dict[str, Any] = {
        "run": str(folder),
        "split": split,
        "films": films_data,
        "ablation": ablate(run, manifest, split, thresholds) if ablation else None,
    }
    out.mkdir(parents=True, exist_ok=True)
    for film in explained:
        figures.film_figure(film, out / f"{declared.sample.replace(' ', '-')}-{film.film}.png", 1.5 if is_film else 1.0)
    if explanation["ablation"] is not None:
        figures.ablation_figure(explanation["ablation"], ABLATED[choose], out / "ablation.png", declared)
    with atomic_file(out / "explanation.json", "w") as file:
        json.dump(explanation | ({"films": list(map(_as_film, films_data))} if is_film else {}), file, indent=1)
    heats = {
        (film.film, genre, name): thumbnail(figures.overlay(film.pictures[name], heat), squashed=is_film)
        for film in explained
        for genre, _, attribution in film.genres
        for name, heat in attribution.heats.items()
    }
    context = {
        "heats": heats,
        "pictures": {film.film: film.info.images for film in explained if film.info},
        "images": [field.name for field in declared.fields if field.kind == "image"] or ["image"],
        "shape": Markup('height="240"' if is_film else 'height="160" style="aspect-ratio: 1"'),
        "labels": SHOWN[choose].names,
        "media": _media(explanation, declared),
    }
    words = {"declared": declared, "plural": plural(declared.label), "media_words": media_words(declared)}
    write_page(out / "index.html", "explanation.html", explanation=explanation, **context, **words)
    return explanation


def _number_of(id: str, declared: Schema) -> int:
    """The number in the index of a sample's id. Raises ValueError for what is no id of a film."""
    if declared != TMDB:
        return number_of_id(id)
    if not (id.isdecimal() and int(id) < 2**63):
        raise ValueError(f"--films takes ids of films such as 603,604, not `{id}`")
    return int(id)


def _surest(folder: Path, split: str, count: int, thresholds: NDArray[np.float64] | None) -> list[int]:
    """For each genre the film of its highest margin over the threshold; the largest margins first."""
    result = read_result(folder, split)
    above = margins(result.scores.logits, result.scores.choose, thresholds)  # [films, genres]
    best = above.argmax(axis=0)
    order = np.argsort(-above[best, np.arange(len(best))])
    return list(dict.fromkeys(int(result.ids[best[genre]]) for genre in order))[:count]


def _within_positions(run: Run) -> Config:
    """The run's configuration, with texts cut to what its encoders read: what they would cut has no attributions."""
    data = run.config.data
    limits = [getattr(encoder, "positions", None) or data.max_tokens for encoder in run.model.text_encoders.values()]
    return replace(run.config, data=replace(data, max_tokens=min([data.max_tokens, *limits])))


def _rows_of_films(reader: ShardReader, films: Sequence[int]) -> list[Rows]:
    """The rows of films among those that have every member the model needs. Raises ValueError if one is missing."""
    rows_of_film: dict[int, Rows] = {}
    for number in range(len(reader.index.shards)):
        ids = reader.index.ids(reader.index.rows_of(number))
        for row in np.flatnonzero(np.isin(ids, films)):
            rows_of_film[int(ids[row])] = Rows(np.array([number]), np.array([row]))
    if missing := [str(film) for film in films if film not in rows_of_film]:
        raise ValueError(
            f"{reader.manifest.folder}: the {reader.split} split has no {reader.manifest.declared.sample} "
            f"{', '.join(missing)} with {' and '.join(reader.wanted)}"
        )
    return [rows_of_film[film] for film in films]


def _explain_film(
    run: Run,
    batch: Batch,
    explainer: Explainer,
    thresholds: NDArray[np.float64] | None,
    count: int,
    infos: dict[int, FilmInfo],
) -> Explained:
    """Explain one sample, a batch of 1, for its `count` most confident labels."""
    inputs = to_device(batch, next(run.model.parameters()).device, whole_pixels(run.config.data))
    with torch.no_grad():
        logits = run.model(inputs.fields).float().cpu().numpy()
    above = margins(logits, run.declared.labels.choose, thresholds)[0]  # [labels]
    names, lengths = {field.part: field.name for field in run.declared.fields}, batch.of("lengths")
    texts = {part: run.tokenizer.spelled(tokens[0, : lengths[part][0]]) for part, tokens in batch.of("tokens").items()}

    def by_field(values: Mapping[str, Value]) -> dict[str, Value]:
        return {names[part]: value for part, value in values.items()}

    def attribution(label: int) -> Attribution:
        heats, words, unexplained = explainer(inputs.fields, label)
        for part, values in words.items():  # a word's value is the sum of its tokens'
            spelled, owners = texts[part]
            words[part] = np.bincount(owners, values[: len(owners)], len(spelled)).astype(np.float32)
        return Attribution(by_field(heats), by_field(words), by_field(unexplained))

    film = int(batch.ids[0])
    return Explained(
        film=film,
        info=infos.get(film),
        true=[name for name, label in zip(run.genres, batch.labels[0] > 0, strict=True) if label],
        words=by_field({part: words for part, (words, _) in texts.items()}),
        pictures=by_field({part: images[0].copy() for part, images in batch.of("images").items()}),
        genres=[
            (run.genres[genre], float(above[genre]), attribution(int(genre))) for genre in np.argsort(-above)[:count]
        ],
    )


def _film_data(film: Explained) -> dict[str, Any]:
    """A sample's explanation as plain data, each image and text by its field."""
    return {
        "tmdb_id": film.film,
        "title": film.info.title if film.info else str(film.film),
        "genres": film.true,
        "explained": [
            {
                "genre": genre,
                "logit_above_threshold": above,
                "on_images": {name: bool(heat.any()) for name, heat in result.heats.items()},
                "words": {
                    name: [[word, round(float(value), 4)] for word, value in zip(film.words[name], values, strict=True)]
                    for name, values in result.words.items()
                },
                "unexplained": result.unexplained,
            }
            for genre, above, result in film.genres
        ],
    }


def _as_film(film: dict[str, Any]) -> dict[str, Any]:
    """A film's explanation as files have it: of the poster and of the only text."""
    explained = [
        {"genre": one["genre"], "logit_above_threshold": one["logit_above_threshold"]}
        | {"on_poster": any(one["on_images"].values()), "words": next(iter(one["words"].values()), [])}
        | {"unexplained": next(iter(one["unexplained"].values()), 0.0)}
        for one in film["explained"]
    ]
    return film | {"explained": explained}


def _media(explanation: dict[str, Any], declared: Schema) -> dict[str, Any] | None:
    """The ablation as a forest plot."""
    if explanation["ablation"] is None:
        return None
    rows, choose, words = [], declared.labels.choose, media_words(declared)
    for medium, measures in explanation["ablation"]["loss_without"].items():
        for measure in ABLATED[choose]:
            if (lost := measures[measure]) is not None:
                name = f"{words[medium]} shuffled: {SHOWN[choose].names[measure]}"
                rows.append(_lost_row(lost, name))
    return charts.forest(rows, zero=True, label=lambda value: f"{100 * value:g}")


def media_words(declared: Schema) -> dict[str, str]:
    """What the media of many samples are called, by encoder."""
    return {field.part: field.part if field.part.endswith("s") else plural(field.part) for field in declared.fields}


def _lost_row(lost: dict[str, Any], name: str) -> dict[str, Any]:
    """A forest-plot row of a loss: its figures, label and tooltip."""
    words = tuple(f"{100 * lost[key]:.1f}".replace("-", "\N{MINUS SIGN}") for key in ("value", "low", "high"))
    tip = f"{name}: {words[0]} points lost\n95 % interval {words[1]} to {words[2]}"
    text = Markup("<b>{}</b> {} to {}").format(*words)
    return lost | {"name": name, "tip": tip, "text": text, "sure": lost["low"] > 0}
