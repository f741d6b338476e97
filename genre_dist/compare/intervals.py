"""Intervals of models' measures and differences, over samples and seeds, and the sets of samples they are of."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.compare.results import Model, on_films
from genre_dist.metrics.bootstrap import MEASURES, all_differences, holm, over_seeds, resampled


class FilmSet(NamedTuple):
    """Films on which some models are compared."""

    ids: NDArray[np.int64]
    models: set[int]


def film_sets(models: Sequence[Model]) -> dict[bytes, FilmSet]:
    """The sets of films to resample: each model's own, those that each pair shares, and those that all share.

    Raises ValueError if two models share no film.
    """
    sets: dict[bytes, FilmSet] = {}

    def need(ids: NDArray[np.int64], numbers: Sequence[int]) -> None:
        sets.setdefault(ids.tobytes(), FilmSet(ids, set())).models.update(numbers)

    for number, model in enumerate(models):
        need(model.ids, [number])
    for (i, one), (j, other) in combinations(enumerate(models), 2):
        ids = np.intersect1d(one.ids, other.ids, assume_unique=True)
        if not len(ids):
            sample = one.declared.sample
            raise ValueError(f"{one.name} and {other.name} were evaluated on no common {sample}: nothing to compare")
        need(ids, [i, j])
    need(shared_by_all(models), range(len(models)))
    return sets


def shared_by_all(models: Sequence[Model]) -> NDArray[np.int64]:
    """The films that all models were evaluated on."""
    shared = models[0].ids
    for model in models[1:]:
        shared = np.intersect1d(shared, model.ids, assume_unique=True)
    if not len(shared):
        sample = models[0].declared.sample
        raise ValueError(f"there is no {sample} that all of these runs were evaluated on: compare fewer of them")
    return shared


class DrawnModel(NamedTuple):
    """A model's measures on a set of samples."""

    seeds: NDArray[np.float64]
    """Of each seed, on the samples as they are: [seeds, measures]."""
    values: NDArray[np.float64]
    """Means over the seeds, over resamples of samples and seeds: [1 + resamples, measures], first the mean of all."""

    def figures(self) -> dict[str, Any]:
        """Each measure: the mean over the seeds, its interval, the seeds' standard deviation and values."""
        figures = all_differences(self.values.clip(0, 1))  # scaled deviations of seeds may lead out of it
        for column, measure in enumerate(MEASURES):
            if (figure := figures[measure]) is not None:
                values = self.seeds[:, column].tolist()
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                bounds = {name: figure[name] for name in ("value", "low", "high")}
                figures[measure] = bounds | {"sd": spread, "seeds": values}
        return figures


Drawn = Mapping[int, DrawnModel]
"""The models that are evaluated on a set of samples, by their number."""


def resample(models: Sequence[Model], films: FilmSet, resamples: int) -> Drawn:
    """The measures of the models of a set of films: the same films are drawn for all of them."""
    scores = {
        f"{number} {seed}": on_films(result, films.ids)
        for number in sorted(films.models)
        for seed, result in enumerate(models[number].results)
    }
    drawn = resampled(scores, resamples)
    models_drawn = {}
    for number in films.models:
        seeds = [drawn[f"{number} {seed}"] for seed in range(len(models[number].results))]
        models_drawn[number] = DrawnModel(np.stack([seed[0] for seed in seeds]), over_seeds(seeds, models[number].name))
    return models_drawn


def all_pairs(
    models: Sequence[Model], drawn: Mapping[bytes, Drawn], films: NDArray[np.int64] | None = None
) -> list[dict[str, Any]]:
    """The differences of each pair of models, the later in the list minus the earlier: on the films they share, or on
    `films`."""
    pairs: list[dict[str, Any]] = []
    for (i, first), (j, later) in combinations(enumerate(models), 2):
        ids = np.intersect1d(first.ids, later.ids, assume_unique=True) if films is None else films
        here = drawn[ids.tobytes()]
        measures = all_differences(here[j].values, here[i].values)
        pair: dict[str, Any] = {"one": later.name, "other": first.name, "films": len(ids), "measures": measures}
        if films is None and any(beyond := [len(model.ids) - len(ids) for model in (later, first)]):
            pair["beyond"] = beyond
        pairs.append(pair)
    for measure in MEASURES:
        known = [pair["measures"][measure] for pair in pairs if pair["measures"][measure] is not None]
        for row, adjusted in zip(known, holm([row["p"] for row in known]), strict=True):
            row["p_holm"] = adjusted
    return pairs
