"""Metrics where a sample has exactly one label, by hand and against scikit-learn; their intervals and calibration."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn import metrics as sk

from genre_dist.metrics.bootstrap import MEASURES, Scores, resampled
from genre_dist.metrics.calibration import calibration
from genre_dist.metrics.choosing import log_odds, margins, named_labels, probabilities
from genre_dist.metrics.measures import metrics, most_confused

NAMES = ["a", "b", "c", "d", "e", "f"]


def draw(samples: int = 200, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Logits, each sample's label, and the same one-hot."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 6, samples)
    labels = np.eye(6, dtype=bool)[label]
    return (rng.normal(size=(samples, 6)) + 1.5 * labels).astype(np.float32), label, labels


def test_counted_by_hand() -> None:
    logits = np.array([[3, 2, 1, 0], [0, 3, 2, 1], [3, 2, 1, 0], [3, 2, 1, 0]], np.float32)
    labels = np.eye(4, dtype=bool)[[0, 2, 2, 3]]
    told = metrics(logits, labels, ["a", "b", "c", "d"], "one")
    assert told["accuracy"] == told["micro_f1"] == told["sample_f1"] == 1 / 4
    assert told["top_3"] == 3 / 4
    assert "top_5" not in told  # there are four labels
    assert "threshold" not in told
    assert told["confusion"] == [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert [row["films"] for row in told["per_genre"].values()] == [1, 0, 2, 1]
    assert told["per_genre"]["a"]["precision"] == pytest.approx(1 / 3)
    assert told["macro_f1"] == pytest.approx((2 * 1 / (3 + 1)) / 4)


def test_equal_to_scikit_learn_on_the_softmaxs_probabilities() -> None:
    logits, label, labels = draw()
    told, p = metrics(logits, labels, NAMES, "one"), softmax(logits.astype(float), axis=1)
    predicted = logits.argmax(axis=1)
    assert told["accuracy"] == pytest.approx(sk.accuracy_score(label, predicted))
    assert told["top_3"] == pytest.approx(sk.top_k_accuracy_score(label, p, k=3))
    assert told["top_5"] == pytest.approx(sk.top_k_accuracy_score(label, p, k=5))
    assert told["macro_f1"] == pytest.approx(sk.f1_score(label, predicted, average="macro"))
    assert told["micro_f1"] == pytest.approx(sk.f1_score(label, predicted, average="micro"))
    assert told["auc"] == pytest.approx(sk.roc_auc_score(label, p, multi_class="ovr"))
    assert told["mean_average_precision"] == pytest.approx(sk.average_precision_score(labels, p, average="macro"))
    assert told["mean_average_precision"] != pytest.approx(sk.average_precision_score(labels, logits, average="macro"))
    assert told["confusion"] == sk.confusion_matrix(label, predicted).tolist()
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_sample_without_a_label_that_could_not_be_read_counts_as_wrong() -> None:
    logits, _, labels = draw()
    labels[0] = False
    told = metrics(logits, labels, NAMES, "one")
    assert told["accuracy"] == pytest.approx((logits.argmax(1)[1:] == labels[1:].argmax(1)).sum() / 200)
    assert np.sum(told["confusion"]) == 199


def test_the_labels_most_often_taken_for_others_come_first() -> None:
    counts = np.array([[5, 3, 0], [1, 9, 0], [0, 6, 2]])
    told = most_confused(counts, ["a", "b", "c"], 2)
    assert told == [
        {"true": "c", "predicted": "b", "samples": 6, "share": 6 / 8},
        {"true": "a", "predicted": "b", "samples": 3, "share": 3 / 8},
    ]
    assert len(most_confused(counts, ["a", "b", "c"], 99)) == 3  # pairs that are never confused are no pairs


def test_the_sigmoid_of_the_log_odds_is_the_softmax_however_sure_the_model_is() -> None:
    logits = np.array([[1, 2, 3], [0, 0, 0], [-800, 5, 4], [900, 0, -900]], np.float32)
    odds = log_odds(logits)
    np.testing.assert_allclose(expit(odds), softmax(logits.astype(float), axis=1), atol=1e-15)
    np.testing.assert_allclose(probabilities(logits, "one").sum(axis=1), 1)
    assert odds[3].tolist() == pytest.approx([900, -900, -1800])  # probabilities would be 1, 0 and 0


def test_a_margin_is_above_zero_for_the_likeliest_label_alone() -> None:
    logits, _, _ = draw()
    found = margins(logits, "one")
    np.testing.assert_array_equal(found > 0, named_labels(logits, "one"))
    assert margins(np.array([[1.0, 4.0, 2.0]]), "one").tolist() == [[-3, 2, -2]]
    assert margins(np.array([[1.0, 4.0, 2.0]]), "many", np.array([0.0, 5.0, 1.0])).tolist() == [[1, -1, 1]]


def test_intervals_are_of_the_same_figures() -> None:
    logits, _, labels = draw(80, seed=3)
    drawn = resampled({"a": Scores(logits, labels, None, "one")}, 50)["a"]
    told = metrics(logits, labels, NAMES, "one")
    found = dict(zip(MEASURES, drawn[0], strict=True))
    for name in ("accuracy", "micro_f1", "macro_f1", "sample_f1", "mean_average_precision", "auc"):
        assert found[name] == pytest.approx(told[name], abs=1e-6), name
    assert np.isnan([found[name] for name in MEASURES if name.endswith("_fitted")]).all()


def test_samples_drawn_several_times_count_as_often() -> None:
    logits, _, labels = draw(40, seed=4)
    drawn = resampled({"a": Scores(logits, labels, None, "one")}, 3, seed=7)["a"]
    random = np.random.default_rng(7)
    rows = random.integers(0, 40, (40, 3))
    for number in range(3):
        again = metrics(logits[rows[:, number]], labels[rows[:, number]], NAMES, "one")
        for name in ("accuracy", "macro_f1", "mean_average_precision", "auc"):
            assert drawn[1 + number, MEASURES.index(name)] == pytest.approx(again[name], abs=1e-6), name


def test_calibration_is_of_the_softmaxs_probabilities() -> None:
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]], np.float32)) + 7  # a shift that the softmax ignores
    told = calibration(logits, np.array([[1, 0, 0], [0, 1, 0]], bool), "one")
    assert told["brier"] == pytest.approx((0.04 + 0.01 + 0.01 + 0.64 + 0.81 + 0.01) / 6, abs=1e-6)
    assert [(point["pairs"], point["predicted"]) for point in told["curve"]] == [
        (4, pytest.approx(0.1)),
        (2, pytest.approx(0.8)),
    ]
