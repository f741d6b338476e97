"""Comparison of runs: measures, significance of their differences, costs, and the films where two runs differ most."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.compare.comparison_csv import write_csv
from genre_dist.compare.comparison_page import write_report
from genre_dist.compare.comparison_tables import markdown, print_comparison
from genre_dist.compare.cost_question import cost_question
from genre_dist.compare.costs import read_cost
from genre_dist.compare.differences import FilmInfo, largest_differences, read_film_info
from genre_dist.compare.intervals import Drawn, all_pairs, film_sets, resample, shared_by_all
from genre_dist.compare.label_figures import Bounds, instead, label_intervals, precision_recall, with_intervals
from genre_dist.compare.questions import last_against_first, questions, without_their_run
from genre_dist.compare.reference_2018 import study_2018
from genre_dist.compare.results import Model, Result, on_films, read_models
from genre_dist.compare.shown_measures import SHOWN
from genre_dist.compare.verdict import answers, headline, strongest_pair
from genre_dist.metrics.bootstrap import MEASURES, RESAMPLES, Scores
from genre_dist.metrics.calibration import calibration
from genre_dist.metrics.choosing import likeliest
from genre_dist.metrics.measures import confusion, figures_of_named, mean_of_known, metrics, most_confused
from genre_dist.schema import TMDB, plural

CONFUSED = 20
"""Pairs of labels in a model's table of those that are most often confused."""


def compare(
    folders: Sequence[Path],
    out: Path,
    split: str = "test",
    resamples: int = RESAMPLES,
    films: int = 6,
    shards: Path | str | None = None,
) -> dict[str, Any]:
    """Compare evaluated runs; prints the tables and writes comparison.json, .md and .csv and index.html.

    The report lists `films` of the largest wins and losses, with titles and posters from `shards` (the runs' own by
    default). RAM holds the predictions of the split, 95 bytes a film and run, and chunks of the resamples. Raises
    ValueError if a run was not evaluated on the split or two runs have no film in common.
    """
    models = read_models(folders, split)
    comparison = compared(models, split, resamples, films)
    infos, note = _film_info(models, comparison, shards)
    if note:
        comparison["notes"].append(note)
    declared, keys = models[0].declared, _keys(models)
    for film in (film for side in ("wins", "losses") for film in comparison["films"].get(side, [])):
        number = film["tmdb_id"]
        if number in infos:
            info = infos[number]
            film |= {"title": info.title, "year": info.year, "texts": info.texts}
        if number in keys and film.get("title", str(number)) == str(number):  # it has no title of its own
            film["title"] = keys[number]
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / "comparison.json", "w") as file:
        json.dump(comparison, file, indent=1, allow_nan=False)
    with atomic_file(out / "comparison.md", "w") as file:
        file.write(markdown(comparison, declared))
    write_csv(out, comparison)
    posters = {film: info.poster for film, info in infos.items() if info.poster}
    write_report(out / "index.html", comparison, posters, declared)
    print_comparison(comparison, declared)
    return comparison


def compared(
    models: Sequence[Model], split: str = "test", resamples: int = RESAMPLES, films: int = 6
) -> dict[str, Any]:
    """The whole comparison as plain data, without titles and posters."""
    sets = film_sets(models)
    drawn = {key: resample(models, film_set, resamples) for key, film_set in sets.items()}
    shared = shared_by_all(models)
    of_labels = label_intervals(models, shared, resamples)
    rows = [
        _row(model, number, drawn, shared, intervals)
        for number, (model, intervals) in enumerate(zip(models, of_labels, strict=True))
    ]
    differences = all_pairs(models, drawn)
    on_shared = [] if all(len(model.ids) == len(shared) for model in models) else all_pairs(models, drawn, shared)
    asked = questions(models)
    main = asked or last_against_first(models)
    answered = answers(main, differences, resamples, models[0].declared)
    comparison: dict[str, Any] = {
        "split": split,
        "resamples": resamples,
        "measures": list(MEASURES),
        "genres": models[0].results[0].genres,
        "shared_films": len(shared),
        "notes": _notes(models, shared),
        "models": rows,
        "differences": differences,
        "differences_on_shared_films": on_shared,
        "headline": headline(models, rows, differences, answered),
        "questions": [*(answered if asked else []), *cost_question(models, rows)],
        "strongest": strongest_pair(models, differences, on_shared),
        "films": {},
        "precision_recall": None,
        "study_2018": study_2018() if models[0].declared == TMDB else None,
    }
    if models[0].declared != TMDB:
        comparison["schema"] = models[0].declared.to_dict()
    if main:
        one, other, _ = main[0].pairs[0]
        ids = np.intersect1d(one.ids, other.ids, assume_unique=True)
        comparison["precision_recall"] = precision_recall(one, other)
        comparison["films"] = {"one": one.name, "other": other.name} | largest_differences(one, other, ids, films)
    return comparison


def _row(
    model: Model,
    number: int,
    drawn: Mapping[bytes, Drawn],
    shared: NDArray[np.int64],
    of_labels: Bounds,
) -> dict[str, Any]:
    """The figures of one model: measures, calibration, cost and learning curves; `of_labels` are intervals of F1."""
    cost, curves = read_cost(model.results)
    own = model.ids
    scores = [on_films(result, own) for result in model.results]
    logits, labels = (np.concatenate([one[part] for one in scores]) for part in range(2))
    choose = model.declared.labels.choose
    row = {
        "name": model.name,
        "title": model.title,
        "kind": model.kind,
        "runs": [str(result.folder) for result in model.results],
        "films": len(own),
        "left_out": model.results[0].metrics.get("left_out", 0),
        "on_own_films": drawn[own.tobytes()][number].figures(),
        "on_shared_films": drawn[shared.tobytes()][number].figures(),
        "per_genre": with_intervals(_per_genre(model, shared), of_labels, SHOWN[choose].of_label),
        "calibration": calibration(logits, labels, choose),
        "cost": None if cost is None else cost._asdict(),
        "curves": curves._asdict(),
    }
    if choose == "one":
        counts = confusion(likeliest(logits), labels)
        row["confused"] = most_confused(counts, model.results[0].genres, CONFUSED)
    else:
        row["named_instead"] = instead(model, CONFUSED)
    return row


def _per_genre(model: Model, shared: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """Measures of each label on the samples that all models have, at 0.5 and at fitted thresholds: means over seeds."""
    scores = [on_films(result, shared) for result in model.results]
    of_labels = [_label_metrics(result, one) for result, one in zip(model.results, scores, strict=True)]
    fitted = [
        figures_of_named(one.logits > one.thresholds, one.labels, model.results[0].genres)
        for one in scores
        if one.thresholds is not None
    ]
    table = {}
    for genre in model.results[0].genres:
        row: dict[str, Any] = {"films": of_labels[0][genre]["films"]}
        for name in ("f1", "precision", "recall", "accuracy", "average_precision", "auc"):
            row[name] = mean_of_known([one[genre][name] for one in of_labels])
        for name in ("f1", "precision", "recall"):
            row[f"{name}_fitted"] = mean_of_known([one["per_genre"][genre][name] for one in fitted])
        table[genre] = row
    return table


def _label_metrics(result: Result, scores: Scores) -> Mapping[str, Any]:
    """A run's measures of each label: those of its evaluation, made again if the scores are of fewer samples."""
    if len(scores.labels) == len(result.ids):
        return result.metrics["per_genre"]
    figures: dict[str, Any] = metrics(scores.logits, scores.labels, result.genres, scores.choose)["per_genre"]
    return figures


def _notes(models: Sequence[Model], shared: NDArray[np.int64]) -> list[str]:
    """Warnings for the reader: unequal films, unlike seeds, missing thresholds, single seeds."""
    notes = []
    counts = {model.name: len(model.ids) for model in models}
    declared = models[0].declared
    if any(count != len(shared) for count in counts.values()):
        told = [f"{name} {count:,}" for name, count in counts.items()]
        more = [f" ({count - len(shared):,} beyond those)" * (count > len(shared)) for count in counts.values()]
        notes.append(
            f"NOT ALL MODELS WERE EVALUATED ON THE SAME {declared.samples.upper()}: {len(shared):,} are common to all, "
            f"{', '.join(map(str.__add__, told, more))}. Differences are on the {declared.samples} that both models of "
            "a pair have."
        )
    for model in models:
        if model.unlike_seeds:
            notes.append(
                f"NOT ALL RUNS THAT COUNT AS SEEDS OF {model.name} WERE TRAINED ALIKE ({model.unlike_seeds}). To "
                "compare them with each other, give their folders names that differ in more than the seed."
            )
    unfitted = [model.name for model in models if any(result.scores.thresholds is None for result in model.results)]
    if unfitted and declared.labels.choose == "many":
        notes.append(f"No thresholds for {', '.join(unfitted)}: `genre-dist evaluate RUN --split val` fits them.")
    if alone := without_their_run(models):
        notes.append(f"{', '.join(alone)}: compared with no run, as that with all fields is not among these.")
    single = [model.name for model in models if len(model.results) == 1 and model.kind not in ("baseline", "ensemble")]
    if single:
        notes.append(
            f"One seed only for {', '.join(single)}: the intervals cover the choice of {declared.samples}, not the "
            "luck of training."
        )
    return notes


def _keys(models: Sequence[Model]) -> dict[int, str]:
    """The ids of samples as their data has them, by their numbers in the index; empty for TMDB's films."""
    results = [result for model in models for result in model.results if result.keys is not None]
    return {
        number: key for result in results for number, key in zip(result.ids.tolist(), result.keys or (), strict=True)
    }


def _film_info(
    models: Sequence[Model], comparison: dict[str, Any], shards: Path | str | None
) -> tuple[dict[int, FilmInfo], str | None]:
    """Titles, posters and texts of the films in the comparison; and a note if the shards cannot be read."""
    films = [film["tmdb_id"] for side in ("wins", "losses") for film in comparison["films"].get(side, [])]
    configs = (result.config for model in models for result in model.results)
    own = next((Path(config.data.shards) for config in configs if config is not None), None)
    if not films or (shards := shards or own) is None:
        return {}, None
    try:
        return read_film_info(shards, comparison["split"], films), None
    except (ValueError, OSError) as error:
        images = plural(models[0].declared.first("image"))
        return {}, f"Titles, {images} and texts are missing ({error}); --shards FOLDER says where the shards are."
