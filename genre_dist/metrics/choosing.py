"""From logits to what a model names and how probable it finds it, for any number of labels or exactly one. Pure."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax

from genre_dist.schema import Choose


def named_labels(
    logits: NDArray[np.floating], choose: Choose, thresholds: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """The labels that are predicted, [samples, labels]: those above their thresholds (0 without), or the likeliest."""
    if choose == "one":
        return likeliest(logits)
    return logits > (0 if thresholds is None else thresholds)


def likeliest(logits: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether a label is the one with the largest logit of its sample, the first of equals: [samples, labels]."""
    named = np.zeros(logits.shape, bool)
    named[np.arange(len(logits)), logits.argmax(axis=1)] = True
    return named


def probabilities(logits: NDArray[np.floating], choose: Choose) -> NDArray[np.float64]:
    """Each label's probability [samples, labels], by itself (sigmoid) or among all (softmax)."""
    if choose == "one":
        return np.asarray(softmax(logits.astype(np.float64), axis=1))
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def log_odds(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits whose sigmoid is the softmax of these, [samples, labels]: they rank samples as its probabilities do.

    Unlike those they have no ties near 0 and 1, where probabilities are rounded.
    """
    logits = logits.astype(np.float64)
    top = (np.arange(len(logits)), logits.argmax(axis=1))
    shifted = logits - logits[top][:, None]
    weights = np.exp(shifted)
    with np.errstate(divide="ignore"):  # of the top label, whose odds follow
        odds = shifted - np.log(weights.sum(axis=1, keepdims=True) - weights)
    others = logits.copy()
    others[top] = -np.inf
    odds[top] = logits[top] - logsumexp(others, axis=1)  # the difference above would lose all digits
    return odds


def log_losses(logits: NDArray[np.floating], labels: NDArray[np.bool_], choose: Choose) -> NDArray[np.floating]:
    """What a sample's loss is the mean of: binary cross-entropies [samples, labels], or the softmax's [samples, 1]."""
    if choose == "one":
        return -(labels * log_softmax(logits.astype(np.float64), axis=1)).sum(axis=1, keepdims=True)
    return np.asarray(np.logaddexp(0, logits) - logits * labels)


def margins(
    logits: NDArray[np.floating], choose: Choose, thresholds: NDArray[np.float64] | None = None
) -> NDArray[np.floating]:
    """How far each logit is above what decides, [samples, labels]: its threshold, or the largest of the others."""
    if choose == "many":
        return np.asarray(logits - (0 if thresholds is None else thresholds))
    second, top = np.sort(logits, axis=1)[:, -2:].T
    return np.where(likeliest(logits), logits - second[:, None], logits - top[:, None])
