"""Evaluated runs, read from disk for comparison: predictions, thresholds, configuration, seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.baselines import FILE as BASELINE
from genre_dist.baselines import Description, read_description
from genre_dist.compare.alike import unlike_seeds
from genre_dist.config import Config
from genre_dist.config.files import load_config
from genre_dist.config.run import CONFIG, experiment
from genre_dist.metrics.bootstrap import Scores
from genre_dist.metrics.derived import Derived, read_derived
from genre_dist.metrics.evaluation_files import (
    Metrics,
    declared_of,
    metrics_file,
    predictions_file,
    read_evaluation,
    read_metrics,
    read_predictions,
)
from genre_dist.metrics.thresholds import fit_thresholds, load_thresholds
from genre_dist.schema import TMDB, Schema, plural


class Result(NamedTuple):
    """One evaluated run; its films are sorted by id."""

    folder: Path
    ids: NDArray[np.int64]  # [films]
    scores: Scores
    metrics: Metrics
    """The content of metrics-SPLIT.json."""
    config: Config | None
    """None for baselines and derived evaluations, which the training loop does not make."""
    val_micro_f1: float | None
    """On val, at the thresholds fitted there, or at 0.5 without thresholds."""
    baseline: Description
    """The content of baseline.json; empty for other runs."""
    declared: Schema = TMDB
    keys: list[str] | None = None
    """The ids as the data has them; None if they are these numbers."""
    derived: Derived | None = None
    """The content of derived.json; None for what was not computed from other runs."""

    @property
    def genres(self) -> list[str]:
        return list(self.metrics["per_genre"])


class Model(NamedTuple):
    """One experiment: a run, or several of different seeds."""

    name: str
    results: tuple[Result, ...]

    @property
    def ids(self) -> NDArray[np.int64]:
        """The sorted ids of the films that every seed was evaluated on."""
        shared = self.results[0].ids
        for result in self.results[1:]:
            shared = np.intersect1d(shared, result.ids, assume_unique=True)
        return shared

    @property
    def declared(self) -> Schema:
        """What is declared of the samples and labels."""
        return self.results[0].declared

    @property
    def kind(self) -> str:
        config, derived = self.results[0].config, self.derived
        if derived is not None:
            return derived["kind"]
        return "baseline" if config is None else config.model.kind

    @property
    def title(self) -> str:
        return self.derived["title"] if self.derived else str(self.results[0].baseline.get("title", self.name))

    @property
    def derived(self) -> Derived | None:
        """How the predictions were made from those of runs; None for a run."""
        return self.results[0].derived

    @property
    def unlike_seeds(self) -> str | None:
        """The first setting, other than the seed, that differs between the runs, and both values; None if all agree."""
        first, *others = (result.config for result in self.results)
        for other in others:
            if first is None or other is None:
                if first is not other:
                    return "some were trained, others are baselines"
            elif difference := unlike_seeds(first, other):
                return f"{difference[0]} is {difference[1]} and {difference[2]}"
        return None

    @property
    def starts_warm(self) -> bool:
        """Whether the encoders start from another run's weights."""
        config = self.results[0].config
        return config is not None and config.model.text.weights is not None

    @property
    def val_micro_f1(self) -> float | None:
        """The mean over the seeds, None if one of them was not evaluated on val."""
        values = [result.val_micro_f1 for result in self.results]
        return None if None in values else float(np.mean([value for value in values if value is not None]))


def read_models(folders: Sequence[Path], split: str) -> list[Model]:
    """Runs in the order given; those that differ only in a seed at the end (`name-seed0`, `name/seed1`) are one model.

    Raises ValueError if a run was not evaluated on the split, its files are damaged, or runs do not fit together.
    """
    once: dict[Path, Path] = {}
    for folder in folders:
        once.setdefault(folder.resolve(), folder)
    grouped: dict[str, list[Path]] = {}
    for folder in once.values():
        grouped.setdefault(experiment(folder), []).append(folder)
    names = _short_names(list(grouped))
    models = [
        Model(name, tuple(read_result(folder, split) for folder in group))
        for name, group in zip(names, grouped.values(), strict=True)
    ]
    _check_genres(models)
    return models


def _short_names(paths: list[str]) -> list[str]:
    """The shortest endings of the paths, by folders, that are all different."""
    for parts in range(1, 1 + max(path.count("/") + 1 for path in paths)):
        names = ["/".join(path.split("/")[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return paths


def read_result(folder: Path, split: str) -> Result:
    """One run's evaluation on a split. Raises ValueError as `read_models`."""
    (ids, logits, labels, keys), metrics = read_evaluation(folder, split)
    genres, declared = list(metrics["per_genre"]), declared_of(metrics)
    choose = declared.labels.choose
    thresholds = load_thresholds(folder, genres) if choose == "many" else None
    val, val_metrics = predictions_file(folder, "val"), metrics_file(folder, "val")
    if (
        thresholds is None and choose == "many" and val.is_file()
    ):  # an evaluation of a version that stored no thresholds
        on_val = read_predictions(val, genres, declared)
        thresholds = fit_thresholds(on_val.logits, on_val.labels)
    config, baseline = folder / CONFIG, folder / BASELINE
    return Result(
        folder=folder,
        ids=ids,
        scores=Scores(logits, labels, thresholds, choose),
        metrics=metrics,
        config=load_config(config) if config.is_file() and not baseline.is_file() else None,
        val_micro_f1=_micro_f1(read_metrics(val_metrics)) if val_metrics.is_file() else None,
        baseline=read_description(baseline) if baseline.is_file() else {},
        declared=declared,
        keys=keys,
        derived=read_derived(folder),
    )


def _micro_f1(metrics: Metrics) -> float:
    """Micro F1 at fitted thresholds, or at 0.5 without them."""
    return metrics["fitted"]["micro_f1"] if "fitted" in metrics else metrics["micro_f1"]


def _check_genres(models: Sequence[Model]) -> None:
    first = models[0].results[0]
    labels = plural(first.declared.label)
    for result in (result for model in models for result in model.results):
        if result.genres != first.genres or result.scores.choose != first.scores.choose:
            raise ValueError(f"{result.folder} and {first.folder} have other {labels}: they cannot be compared")
        _, here, there = np.intersect1d(result.ids, first.ids, assume_unique=True, return_indices=True)
        differ = np.flatnonzero((result.scores.labels[here] != first.scores.labels[there]).any(axis=1))
        if len(differ):
            raise ValueError(
                f"{first.declared.sample} {result.ids[here][differ[0]]} and {len(differ) - 1} others have other "
                f"{labels} in {result.folder} than in {first.folder}: they were packed from different catalogues and "
                "cannot be compared"
            )


def on_films(result: Result, ids: NDArray[np.int64]) -> Scores:
    """A run's scores on some of its films (rising ids, all of them its own)."""
    rows = np.searchsorted(result.ids, ids)
    scores = result.scores
    return scores._replace(logits=scores.logits[rows], labels=scores.labels[rows])
