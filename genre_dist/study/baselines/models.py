"""One linear model per genre: naive Bayes and the support vector machine, both a matrix of weights in the end.

Naive Bayes is exact over chunks. The support vector machine holds the train split's features where they fit, and
otherwise learns from chunks by averaged stochastic gradient descent.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier
from sklearn.naive_bayes import MultinomialNB
from sklearn.svm import LinearSVC

Matrix: TypeAlias = Any
"""A sparse matrix in rows, or a dense array."""
Labelled: TypeAlias = tuple[Matrix, NDArray[np.bool_]]
"""Features [films, columns] and labels [films, genres] of a chunk."""

FEWEST_PASSES, MOST_PASSES = 5, 20
SGD_STEPS = 1_000_000
"""Films that gradient descent sees in all, within these numbers of passes; scikit-learn's rule of thumb."""
HELD_BYTES_PER_ENTRY = 12
"""Of the features while a support vector machine is fitted: float64 and int32."""
FITTED_BYTES_PER_ENTRY = 16
"""liblinear's own copy, once for each genre that is fitted at the same time."""


class Linear(NamedTuple):
    """A logit per genre; above zero the genre is named."""

    weights: NDArray[np.float32]  # [columns, genres]
    bias: NDArray[np.float32]  # [genres]

    def logits(self, features: Matrix) -> NDArray[np.float32]:
        """float32 [films, genres]."""
        return np.asarray(features @ self.weights + self.bias, np.float32)


def fit_naive_bayes(chunks: Iterable[Labelled], columns: int, genres: int) -> Linear:
    """Multinomial naive Bayes, one against the rest; the logit is the log-odds. Held: two counts a column and genre."""
    models = [MultinomialNB() for _ in range(genres)]
    positive, films = np.zeros(genres, np.int64), 0
    with np.errstate(divide="ignore"):  # a genre that all films so far lack has no prior yet
        for features, labels in chunks:
            positive += labels.sum(axis=0)
            films += len(labels)
            for genre, model in enumerate(models):
                model.partial_fit(features, labels[:, genre], classes=[False, True])
    return _joined(
        [
            (
                model.feature_log_prob_[1] - model.feature_log_prob_[0],
                model.class_log_prior_[1] - model.class_log_prior_[0],
            )
            for model in models
        ],
        positive,
        films,
    )


def fit_svm(features: Matrix, labels: NDArray[np.bool_], workers: int) -> tuple[Linear, int]:
    """scikit-learn's LinearSVC for each genre, on features held whole; also how many did not converge."""
    features = features.astype(np.float64)  # liblinear's, once instead of once for each genre
    positive = labels.sum(axis=0)

    def fit(genre: int) -> tuple[NDArray[Any], float, bool]:
        if positive[genre] in (0, len(labels)):
            return np.zeros(features.shape[1]), 0.0, True
        model = LinearSVC(random_state=0).fit(features, labels[:, genre])
        return model.coef_[0], float(model.intercept_[0]), bool(model.n_iter_ < model.max_iter)

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = list(pool.map(fit, range(labels.shape[1])))
    linear = _joined([(weights, bias) for weights, bias, _ in fitted], positive, len(labels))
    return linear, sum(not converged for _, _, converged in fitted)


def fit_svm_in_chunks(
    epoch: Callable[[], Iterator[Labelled]], films: int, genres: int, workers: int
) -> tuple[Linear, int]:
    """A linear support vector machine for each genre, by stochastic gradient descent over the chunks; also the passes.

    The weights are the average of the last pass. The objective is that of `fit_svm` with the plain hinge, whose steps
    do not run away on raw counts. Held are three numbers per column and genre, and one chunk.
    """
    passes = min(max(SGD_STEPS // films, FEWEST_PASSES), MOST_PASSES)
    options = {"alpha": 1 / films, "average": films * (passes - 1)}
    models = [SGDClassifier(random_state=genre, **options) for genre in range(genres)]
    positive = np.zeros(genres, np.int64)
    with ThreadPoolExecutor(workers) as pool:
        for number in range(passes):
            for features, labels in epoch():
                if number == 0:
                    positive += labels.sum(axis=0)
                list(
                    pool.map(
                        lambda pair: pair[0].partial_fit(features, pair[1], classes=[False, True]),  # noqa: B023
                        zip(models, labels.T, strict=True),
                    )
                )
    return _joined([(model.coef_[0], model.intercept_[0]) for model in models], positive, films), passes


def _joined(fitted: list[tuple[NDArray[Any], float]], positive: NDArray[np.int64], films: int) -> Linear:
    """The genres' weights side by side; a genre that no train film has, or all have, keeps its smoothed log-odds."""
    weights = np.stack([each for each, _ in fitted], axis=1).astype(np.float32)
    bias = np.array([each for _, each in fitted], np.float32)
    constant = (positive == 0) | (positive == films)
    weights[:, constant] = 0
    bias[constant] = np.log((positive[constant] + 1) / (films - positive[constant] + 1))
    return Linear(weights, bias)
