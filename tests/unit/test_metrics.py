"""Metrics against cases counted by hand and against scikit-learn."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from genre_dist.genres import GENRES
from genre_dist.metrics.measures import metrics

NAMES = [genre.name for genre in GENRES]


def draw(films: int = 60, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits and labels of 19 genres, each genre with and without films."""
    rng = np.random.default_rng(seed)
    labels = rng.random((films, 19)) < 0.25
    labels[0], labels[1] = True, False
    return (rng.normal(size=(films, 19)) + labels).astype(np.float32), labels


def test_counted_by_hand() -> None:
    logits = np.array([[2, -1, 3], [1, -2, -1], [-1, -3, 1], [-2, 1, 2]], np.float32)
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 1]], bool)
    # found: genre 0 in films 0 and 1 (1 right, 2 true); 1 in film 3 (right, 2 true); 2 in 0, 2 and 3 (2 right, 3 true)
    told = metrics(logits, labels, ["a", "b", "c"])
    assert told["films"] == 4
    assert told["threshold"] == 0.5
    assert told["accuracy"] == pytest.approx(7 / 12)
    assert [row["f1"] for row in told["per_genre"].values()] == pytest.approx([1 / 2, 2 / 3, 2 / 3])
    assert [row["precision"] for row in told["per_genre"].values()] == pytest.approx([1 / 2, 1, 2 / 3])
    assert [row["recall"] for row in told["per_genre"].values()] == pytest.approx([1 / 2, 1 / 2, 2 / 3])
    assert [row["accuracy"] for row in told["per_genre"].values()] == pytest.approx([2 / 4, 3 / 4, 2 / 4])
    assert [row["films"] for row in told["per_genre"].values()] == [2, 2, 3]
    assert told["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert told["micro_f1"] == pytest.approx(2 * 4 / (6 + 7))  # 4 right, 6 found, 7 true
    assert told["sample_f1"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    # ranks of the true films: genre 0: 1st and 3rd; 1: 1st and 4th; 2: 1st, 2nd and 4th
    precisions = [(1 + 2 / 3) / 2, (1 + 2 / 4) / 2, (1 + 1 + 3 / 4) / 3]
    assert told["mean_average_precision"] == pytest.approx(np.mean(precisions))
    assert told["auc"] == pytest.approx(np.mean([3 / 4, 2 / 4, 2 / 3]))  # pairs of a true and a false film in order


def test_equal_to_scikit_learn() -> None:
    logits, labels = draw()
    told = metrics(logits, labels, NAMES)
    found = logits > 0
    for average in ("micro", "macro"):
        assert told[f"{average}_f1"] == pytest.approx(sk.f1_score(labels, found, average=average, zero_division=0))
    assert told["sample_f1"] == pytest.approx(sk.f1_score(labels, found, average="samples", zero_division=0))
    assert told["mean_average_precision"] == pytest.approx(sk.average_precision_score(labels, logits, average="macro"))
    assert told["auc"] == pytest.approx(sk.roc_auc_score(labels, logits, average="macro"))
    for g, row in enumerate(told["per_genre"].values()):
        assert row["average_precision"] == pytest.approx(sk.average_precision_score(labels[:, g], logits[:, g]))
        assert row["precision"] == pytest.approx(sk.precision_score(labels[:, g], found[:, g], zero_division=0))


def test_accuracy_is_the_studys_mean_of_the_genres_accuracies() -> None:
    logits, labels = draw(seed=1)
    told = metrics(logits, labels, NAMES)
    assert told["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in told["per_genre"].values()]))
    assert told["accuracy"] != pytest.approx(
        (((logits > 0) == labels).all(axis=1)).mean()
    )  # not the share of perfect rows


def test_a_probability_of_one_half_is_not_above_the_threshold() -> None:
    told = metrics(np.zeros((2, 2), np.float32), np.eye(2, dtype=bool), ["a", "b"])
    assert told["per_genre"]["a"]["recall"] == 0


def test_a_genre_without_positives_has_no_ap_and_no_auc_and_is_left_out_of_the_means() -> None:
    logits, labels = draw()
    whole = metrics(logits, labels, NAMES)
    labels[:, 3] = False
    told = metrics(logits, labels, NAMES)
    missing = told["per_genre"][NAMES[3]]
    assert missing["average_precision"] is None
    assert missing["auc"] is None
    assert missing["films"] == 0
    for mean, each in (("mean_average_precision", "average_precision"), ("auc", "auc")):
        others = [row[each] for name, row in whole["per_genre"].items() if name != NAMES[3]]
        assert told[mean] == pytest.approx(np.mean(others))


def test_a_genre_that_all_films_have_has_an_ap_but_no_auc() -> None:
    logits, labels = draw()
    labels[:, 5] = True
    row = metrics(logits, labels, NAMES)["per_genre"][NAMES[5]]
    assert row["average_precision"] == pytest.approx(1)
    assert row["auc"] is None


def test_no_labels_at_all_leave_the_means_empty_and_the_rest_defined() -> None:
    told = metrics(np.full((3, 2), -1, np.float32), np.zeros((3, 2), bool), ["a", "b"])
    assert told["mean_average_precision"] is None
    assert told["auc"] is None
    assert told["accuracy"] == 1
    assert told["micro_f1"] == 0


def test_what_is_told_is_plain_json() -> None:
    logits, labels = draw(films=2)
    told = metrics(logits, labels, NAMES)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert list(told["per_genre"]) == NAMES
