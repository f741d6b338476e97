"""Resampled measures against scikit-learn on the films as drawn, and what the intervals promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk
from study_runs import drawn_labels, drawn_logits

from genre_dist.metrics.bootstrap import MEASURES, Scores, _Prepared, difference, holm, over_seeds, resampled


def expected(scores: Scores, films: NDArray[np.int64]) -> dict[str, float]:
    """Every measure of some films, taken as often as they are listed, by scikit-learn."""
    logits, labels = scores.logits[films], scores.labels[films]
    told = {}
    for suffix, cut in (("_fitted", scores.thresholds), ("", 0)):
        named = logits > cut
        for average, name in (("micro", "micro_f1"), ("macro", "macro_f1"), ("samples", "sample_f1")):
            told[name + suffix] = sk.f1_score(labels, named, average=average, zero_division=0)
        told["accuracy" + suffix] = (named == labels).mean()
    precisions = [sk.average_precision_score(y, x) for y, x in zip(labels.T, logits.T, strict=True) if y.any()]
    areas = [sk.roc_auc_score(y, x) for y, x in zip(labels.T, logits.T, strict=True) if y.any() and not y.all()]
    told["mean_average_precision"] = np.mean(precisions) if precisions else np.nan
    told["auc"] = np.mean(areas) if areas else np.nan
    return told


@given(st.integers(0, 10_000), st.integers(2, 30), st.booleans())
@settings(max_examples=40, deadline=None)
def test_films_drawn_several_times_count_as_often(seed: int, films: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random((films, 3)) < 0.4
    logits = (rng.normal(size=(films, 3)) + labels).astype(np.float32)
    scores = Scores(logits.round(0) if ties else logits, labels, rng.normal(size=3))
    drawn = rng.integers(0, films, films)
    weights = np.bincount(drawn, minlength=films)[:, None].astype(np.float32)
    found = dict(zip(MEASURES, _Prepared(scores).measures(weights)[0], strict=True))
    assert found == pytest.approx(expected(scores, drawn), abs=1e-5, nan_ok=True)


def test_the_first_row_is_the_films_as_they_are() -> None:
    labels = drawn_labels(80)
    scores = Scores(drawn_logits(labels, 1.5, 1), labels, np.full(19, -0.5))
    found = resampled({"a": scores}, resamples=3)["a"]
    assert found.shape == (4, len(MEASURES))
    assert dict(zip(MEASURES, found[0], strict=True)) == pytest.approx(expected(scores, np.arange(80)), abs=1e-5)


def test_the_same_films_are_drawn_for_all_runs_whoever_else_is_there() -> None:
    labels = drawn_labels(60)
    runs = {str(seed): Scores(drawn_logits(labels, 1.0, seed), labels, None) for seed in range(3)}
    together, alone = resampled(runs, 50, seed=4), resampled({"2": runs["2"]}, 50, seed=4)
    np.testing.assert_array_equal(together["2"], alone["2"])
    same = difference(together["0"][:, 4], together["0"][:, 4])
    assert same is not None
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_pairing_makes_differences_surer_than_the_figures_themselves() -> None:
    labels = drawn_labels(400)
    runs = {
        name: Scores(drawn_logits(labels, skill, 1), labels, None) for name, skill in (("one", 2.0), ("other", 1.7))
    }
    found = resampled(runs, 400)
    column = MEASURES.index("micro_f1")
    alone, paired = difference(found["one"][:, column]), difference(found["one"][:, column], found["other"][:, column])
    assert alone is not None
    assert paired is not None
    assert 0 < paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.8 * (alone.high - alone.low)
    assert paired.p == pytest.approx(2 / 401)  # as small as 400 resamples can tell


@pytest.mark.slow
def test_nineteen_of_twenty_intervals_hold_the_true_difference() -> None:
    """Two models of the same skill: their true difference is 0."""
    inside = 0
    for trial in range(60):
        labels = drawn_labels(120, seed=trial)
        noise = np.random.default_rng(trial).normal(size=(2, *labels.shape)).astype(np.float32)
        runs = {str(k): Scores(noise[k] + 1.5 * labels - 1, labels, None) for k in range(2)}
        found = resampled(runs, 200, seed=trial)
        column = MEASURES.index("micro_f1")
        told = difference(found["0"][:, column], found["1"][:, column])
        assert told is not None
        inside += told.low <= 0 <= told.high
    assert inside >= 52  # of 57 expected; fewer than 52 has a chance of 1 in 100


@pytest.mark.parametrize("count", [2, 3, 5])
def test_seeds_alone_spread_a_mean_by_its_standard_error(count: int) -> None:
    """Seeds that no resample changes: what is left is the standard error of their mean."""
    values = np.random.default_rng(count).normal(size=count)
    found = over_seeds([np.full((20_001, 1), value) for value in values], "model")
    assert found[0, 0] == pytest.approx(values.mean())
    assert found[1:].mean() == pytest.approx(values.mean(), abs=0.02 * values.std())
    assert found[1:].std() == pytest.approx(values.std(ddof=1) / np.sqrt(count), rel=0.02)


def test_seeds_widen_the_interval_of_the_samples_and_one_seed_leaves_it() -> None:
    random = np.random.default_rng(0)
    samples = random.normal(size=(4001, 1))  # what a draw of samples does to every seed
    seeds = [samples + value for value in (-1.0, 0.0, 1.0)]
    np.testing.assert_array_equal(over_seeds(seeds[:1], "model"), seeds[0])
    assert over_seeds(seeds, "model")[1:].var() == pytest.approx(1 + 1 / 3, rel=0.1)


def test_the_seeds_of_two_models_are_drawn_independently_and_each_models_always_alike() -> None:
    seeds = [np.full((2001, 1), value) for value in (0.0, 1.0)]
    one, again, other = (over_seeds(seeds, name)[:, 0] for name in ("one", "one", "other"))
    np.testing.assert_array_equal(one, again)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_without_thresholds_only_their_measures_are_missing() -> None:
    labels = drawn_labels(30)
    found = resampled({"a": Scores(drawn_logits(labels, 1.0, 0), labels, None)}, 5)["a"]
    missing = [measure for column, measure in enumerate(MEASURES) if difference(found[:, column]) is None]
    assert missing == [measure for measure in MEASURES if measure.endswith("_fitted")]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []
