"""One linear model per genre, naive Bayes or a support vector machine, as a matrix of weights."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.naive_bayes import MultinomialNB
from sklearn.svm import LinearSVC

Matrix: TypeAlias = Any
"""A sparse matrix in rows, or a dense array."""

HELD_BYTES_PER_ENTRY = 12
"""The features' bytes per entry while an SVM is fitted: float64 and int32."""
FITTED_BYTES_PER_ENTRY = 16
"""The bytes per entry of liblinear's copy, once for each genre fitted concurrently."""


class Linear(NamedTuple):
    """A linear layer: a logit per genre; above zero the genre is predicted."""

    weights: NDArray[np.float32]  # [columns, genres]
    bias: NDArray[np.float32]  # [genres]

    def logits(self, features: Matrix) -> NDArray[np.float32]:
        """Logits, float32 [films, genres]."""
        return np.asarray(features @ self.weights + self.bias, np.float32)


def fit(model: str, features: Matrix, labels: NDArray[np.bool_], workers: int) -> tuple[Linear, int]:
    """Fit a scikit-learn model (svm, naive_bayes) per genre; also returns how many did not converge.

    The logit of naive Bayes is its log-odds. A genre of no film, or of all films, gets its smoothed log-odds.
    """
    films, columns = features.shape
    features = features.astype(np.float64)  # liblinear needs float64; it would convert once per genre

    def fit_genre(genre: int) -> tuple[NDArray[Any], float, bool]:
        positive = int(labels[:, genre].sum())
        if positive in (0, films):
            return np.zeros(columns), float(np.log((positive + 1) / (films - positive + 1))), True
        if model == "naive_bayes":
            bayes = MultinomialNB().fit(features, labels[:, genre])
            no, yes = bayes.feature_log_prob_
            return yes - no, float(np.diff(bayes.class_log_prior_)[0]), True
        svm = LinearSVC(random_state=0).fit(features, labels[:, genre])
        return svm.coef_[0], float(svm.intercept_[0]), bool(svm.n_iter_ < svm.max_iter)

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        weights, bias, converged = zip(*pool.map(fit_genre, range(labels.shape[1])), strict=True)
    linear = Linear(np.stack(weights, axis=1).astype(np.float32), np.array(bias, np.float32))
    return linear, converged.count(False)


def workers_within(memory: float, entries: int, workers: int) -> int:
    """The number of genres that fit into `memory` bytes concurrently, for features of `entries`; 0 if none fits."""
    left = memory - entries * HELD_BYTES_PER_ENTRY
    return max(0, min(workers, int(left // max(1, entries * FITTED_BYTES_PER_ENTRY))))
