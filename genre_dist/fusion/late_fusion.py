"""Late fusion: a weighted sum of several models' logits, for samples that only some of them have. Pure.

The fused logit of a label is prior + sum over the models of w (z - prior), with the label's log-odds as prior: a model
of weight 0 leaves the prior, and one of weight 1 alone its own logit. Each set of models that have a sample has weights
of its own.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from genre_dist.metrics.choosing import log_losses, probabilities
from genre_dist.schema import Choose

Members = tuple[int, ...]
"""The numbers of the models that have a sample."""
Weights = Mapping[Members, NDArray[np.float64]]
"""A weight, at least 0, for each of the models that have a sample."""


class Joined(NamedTuple):
    """The samples that any of several models has."""

    labels: NDArray[np.bool_]  # [samples, labels]
    has: NDArray[np.bool_]  # [models, samples], whether a model has a sample
    logits: NDArray[np.float32]  # [models, samples, labels], 0 where it has not

    def sets(self) -> Iterator[tuple[Members, NDArray[np.int64]]]:
        """The sets of models that have a sample, with the rows of these samples."""
        sets, of = np.unique(self.has.T, axis=0, return_inverse=True)
        for number, members in enumerate(sets):
            yield tuple(np.flatnonzero(members).tolist()), np.flatnonzero(of.reshape(-1) == number)

    def shifts(self, members: Members, rows: NDArray[np.int64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far the logits of some models for some samples are from the prior: [members, rows, labels]."""
        return np.asarray(self.logits[list(members)][:, rows] - prior)


def prior_of(labels: NDArray[np.bool_], choose: Choose) -> NDArray[np.float64]:
    """Each label's log-odds, or its log-probability where a sample has exactly one: labels [samples, labels] ->
    [labels].

    Half a sample is added to each count, so that a label without positives is rare and not impossible.
    """
    counts = labels.sum(axis=0) + 0.5
    others = counts.sum() if choose == "one" else len(labels) + 1 - counts
    return np.log(counts / others)


def fit_weights(joined: Joined, prior: NDArray[np.float64], choose: Choose) -> Weights:
    """The weights of the least mean cross-entropy on these samples, for each set of models that have some."""
    return {
        members: _fit(joined.shifts(members, rows, prior), joined.labels[rows], prior, choose)
        for members, rows in joined.sets()
    }


def fuse(joined: Joined, prior: NDArray[np.float64], weights: Weights) -> NDArray[np.float32]:
    """The fused logits [samples, labels]; a set of models without weights gets equal ones, the mean of its logits."""
    fused = np.empty(joined.labels.shape, np.float32)
    for members, rows in joined.sets():
        own = weights.get(members, equal(len(members)))
        fused[rows] = prior + np.tensordot(own, joined.shifts(members, rows, prior), 1)
    return fused


def equal(models: int) -> NDArray[np.float64]:
    return np.full(models, 1 / models)


def _fit(
    shifts: NDArray[np.float64], labels: NDArray[np.bool_], prior: NDArray[np.float64], choose: Choose
) -> NDArray[np.float64]:
    """The weights [models] of the least mean cross-entropy; shifts [models, samples, labels] are z - prior.

    The loss is convex. L-BFGS-B begins at the best of each model alone and all alike and never goes up.
    """
    truth = labels.astype(np.float64)
    share = truth.sum(axis=1, keepdims=True) if choose == "one" else 1.0  # 0 of a sample that could not be read
    terms = labels.size if choose == "many" else len(labels)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = prior + np.tensordot(weights, shifts, 1)
        with np.errstate(over="ignore"):  # exp of a logit below -700: the probability is 0
            slopes = probabilities(logits, choose) * share - truth
        return float(log_losses(logits, labels, choose).mean()), np.tensordot(shifts, slopes, 2) / terms

    start = min([equal(len(shifts)), *np.eye(len(shifts))], key=lambda weights: loss(weights)[0])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start))
    return np.asarray(found.x if found.fun <= loss(start)[0] else start)
