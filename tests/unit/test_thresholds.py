"""Fitted thresholds: the best F1 on val where a genre has films enough to tell, the one best for all where not."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from genre_dist.metrics.measures import metrics
from genre_dist.metrics.thresholds import fit_thresholds, load_thresholds, save_thresholds
from genre_dist.training.evaluation import Evaluation, save_evaluation

LOGITS = st.floats(-20, 20, width=32) | st.sampled_from([-1.0, 0.0, 1.0])


@st.composite
def one_genre(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    films = draw(st.integers(1, 12))
    return draw(hnp.arrays(np.float32, (films, 1), elements=LOGITS)), draw(hnp.arrays(bool, (films, 1)))


def f1_at(logits: NDArray[np.float32], labels: NDArray[np.bool_], threshold: float) -> float:
    named = logits[:, 0] > threshold
    return float(2 * (named & labels[:, 0]).sum() / max(1, named.sum() + labels.sum()))


@given(one_genre())
def test_for_a_genre_alone_no_threshold_is_better(films: tuple[NDArray[np.float32], NDArray[np.bool_]]) -> None:
    logits, labels = films
    fitted = f1_at(logits, labels, fit_thresholds(logits, labels)[0])
    # between films F1 is constant: one threshold a gap, one below all, and 0, are all there are
    for threshold in [0.0, -30.0, *logits[:, 0].astype(float)]:
        assert fitted >= f1_at(logits, labels, threshold) - 1e-12


@given(one_genre())
def test_a_threshold_never_depends_on_the_order_of_the_films(
    films: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> None:
    logits, labels = films
    assert fit_thresholds(logits, labels) == fit_thresholds(logits[::-1], labels[::-1])


@given(one_genre())
def test_one_half_stays_where_nothing_is_better(films: tuple[NDArray[np.float32], NDArray[np.bool_]]) -> None:
    logits, labels = films
    threshold = fit_thresholds(logits, labels)[0]
    assert threshold == 0 or f1_at(logits, labels, threshold) > f1_at(logits, labels, 0.0)


def test_a_genre_that_no_film_has_takes_what_is_best_for_all() -> None:
    logits = np.array([[9, -1], [9, -2], [-9, -4], [-9, -5]], np.float32)
    labels = np.array([[0, 1], [0, 1], [0, 0], [0, 0]], bool)
    both = fit_thresholds(logits, labels)
    assert both[0] == fit_thresholds(logits.reshape(-1, 1), labels.reshape(-1, 1))[0]
    assert fit_thresholds(logits[:, :1], labels[:, :1]).tolist() == [0]  # nothing to go by at all: one half


def test_the_more_films_a_genre_has_the_more_its_own_threshold_counts() -> None:
    logits = np.array([[-1, 5], [-2, 5], [-4, -5], [-5, -5]], np.float32)
    labels = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], bool)
    own, common = -3.0, fit_thresholds(logits.reshape(-1, 1), labels.reshape(-1, 1))[0]
    found = []
    for times in (1, 25, 10_000):
        found.append(fit_thresholds(np.tile(logits, (times, 1)), np.tile(labels, (times, 1)))[0])
    assert found == [pytest.approx(common + n / (n + 50) * (own - common)) for n in (2, 50, 20_000)]


def test_it_lies_halfway_between_two_films() -> None:
    logits = np.array([[-1.0], [-2.0], [-4.0], [-5.0]], np.float32)
    assert fit_thresholds(logits, np.array([[1], [1], [0], [0]], bool)) == [-3]


def drawn(split: str, films: int, seed: int) -> Evaluation:
    """An evaluation of a model that is right but far too careful."""
    rng = np.random.default_rng(seed)
    labels = rng.random((films, 3)) < 0.3
    logits = (rng.normal(size=(films, 3)) + 2 * labels - 3).astype(np.float32)
    told = {"split": split, "left_out": 0, **metrics(logits, labels, ["a", "b", "c"])}
    return Evaluation(split, np.arange(films), logits, labels, told)


def test_thresholds_come_from_val_whichever_split_is_evaluated(tmp_path: Path) -> None:
    val, test = drawn("val", 300, 0), drawn("test", 300, 1)
    assert "fitted" not in save_evaluation(test, tmp_path)  # nothing was fitted yet, and never on test
    told_val = save_evaluation(val, tmp_path)
    fitted = fit_thresholds(val.logits, val.labels)
    np.testing.assert_array_equal(load_thresholds(tmp_path, ["a", "b", "c"]), fitted)
    told = save_evaluation(test, tmp_path)
    np.testing.assert_array_equal(load_thresholds(tmp_path, ["a", "b", "c"]), fitted)
    assert told_val["fitted"]["fitted_on_these_films"]
    assert not told["fitted"]["fitted_on_these_films"]
    named = test.logits > fitted
    assert told["fitted"]["micro_f1"] == pytest.approx(f1_score(test.labels, named, average="micro"))
    assert told["fitted"]["micro_f1"] > told["micro_f1"] + 0.05
    assert {key: told[key] for key in test.metrics} == test.metrics  # the figures at 0.5 are untouched
    assert pq.read_table(tmp_path / "predictions-test.parquet").num_rows == 300


@pytest.mark.parametrize("content", ["{", '{"logits": {"a": 1}}', '{"logits": {"a": 1, "b": null}}', "[]"])
def test_thresholds_of_another_model_are_refused(content: str, tmp_path: Path) -> None:
    save_thresholds(tmp_path, ["a", "b"], np.zeros(2), 10)
    assert load_thresholds(tmp_path, ["a", "b"]) is not None
    (tmp_path / "thresholds.json").write_text(content)
    with pytest.raises(ValueError, match=r"thresholds\.json"):
        load_thresholds(tmp_path, ["a", "b"])
