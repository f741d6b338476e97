"""The comparison's figures of single labels: intervals of F1, precision-recall curves, what is named instead."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score
from study_runs import drawn_labels, drawn_logits, write_evaluation

from genre_dist.compare.comparison import compare, compared
from genre_dist.compare.label_figures import label_intervals, precision_recall
from genre_dist.compare.results import read_models
from genre_dist.genres import GENRE_NAMES
from genre_dist.metrics.bootstrap import MEASURES, Scores, resampled, resampled_labels
from genre_dist.metrics.measures import most_often_instead, named_instead

FILMS = 120


def write(run: Path, skill: float, seed: int = 1) -> Path:
    for split, label_seed in (("val", 1), ("test", 0)):
        labels = drawn_labels(FILMS, label_seed)
        write_evaluation(run, split, np.arange(FILMS), drawn_logits(labels, skill, seed), labels)
    return run


def test_the_f1_of_labels_is_scikit_learns_and_their_mean_the_macro_f1_of_every_draw() -> None:
    labels = drawn_labels(FILMS)
    scores = Scores(drawn_logits(labels, 1.5, 1), labels, np.full(19, -0.5))
    found = resampled_labels({"a": scores}, 20)["a"]
    np.testing.assert_allclose(found[0], f1_score(labels, scores.logits > -0.5, average=None, zero_division=0))
    macro = resampled({"a": scores}, 20)["a"][:, MEASURES.index("macro_f1_fitted")]
    np.testing.assert_allclose(found.mean(axis=1), macro)


@pytest.mark.slow
def test_every_label_has_an_interval_around_its_f1_that_seeds_widen(tmp_path: Path) -> None:
    unlike = [write(tmp_path / f"unlike-seed{seed}", skill, seed) for seed, skill in enumerate((1.0, 3.0))]
    models = read_models([*unlike, write(tmp_path / "one", 2.0)], "test")
    rows = {row["name"]: row["per_genre"] for row in compared(models, resamples=300)["models"]}
    for row in (row for table in rows.values() for row in table.values()):
        assert 0 <= row["f1_fitted_low"] <= row["f1_fitted"] <= row["f1_fitted_high"] <= 1
    unlike_seeds, one = label_intervals(models, models[0].ids, 300)
    widths = [np.mean([row["high"] - row["low"] for row in table.values()]) for table in (unlike_seeds, one)]
    assert widths[0] > 1.5 * widths[1]


@pytest.mark.slow
def test_a_precision_recall_curve_has_the_average_precision_under_it(tmp_path: Path) -> None:
    models = read_models([write(tmp_path / "one", 2.0), write(tmp_path / "other", 1.0)], "test")
    found = precision_recall(*models)
    assert (found["one"], found["other"]) == ("one", "other")
    logits, labels, *_ = models[0].results[0].scores
    for label, name in enumerate(GENRE_NAMES):
        positives = labels[:, label].sum()
        expected = average_precision_score(labels[:, label], logits[:, label])
        assert found["labels"][name]["films"] == positives
        assert np.mean(found["labels"][name]["one"]) == pytest.approx(expected, abs=0.5 / positives)
        assert found["labels"][name]["one"][-1] >= positives / FILMS - 1e-4  # all of them found


def test_what_is_named_instead_by_hand() -> None:
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], bool)
    named = np.array([[0, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1]], bool)
    counts = named_instead(named, labels)
    # the first label is missed twice, and once both others are named; where it is named, the third is nothing instead
    assert counts.tolist() == [[2, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert most_often_instead(counts, ["a", "b", "c"], 2) == [
        {"missed": "a", "named": "b", "samples": 1, "share": 0.5},
        {"missed": "a", "named": "c", "samples": 1, "share": 0.5},
    ]


@pytest.mark.slow
def test_the_page_shows_a_square_for_each_label_and_what_is_named_instead(tmp_path: Path) -> None:
    comparison = compare([write(tmp_path / "a", 1.0), write(tmp_path / "b", 2.0)], tmp_path / "report", resamples=50)
    page = (tmp_path / "report" / "index.html").read_text()
    squares = page.split('id="precision-recall"')[1].split("</section>")[0]
    assert squares.count("<figure>") == len(GENRE_NAMES)
    instead = page.split('id="confused"')[1].split("</section>")[0]
    first = comparison["models"][0]["named_instead"][0]
    assert f'<th scope="row">{first["missed"]}</th><td>{first["named"]}</td>' in instead
