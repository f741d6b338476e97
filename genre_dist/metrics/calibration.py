"""Calibration: how closely predicted probabilities match observed frequencies. Pure functions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.metrics.choosing import log_odds
from genre_dist.schema import Choose

BINS = 15


def calibration(logits: NDArray[np.float32], labels: NDArray[np.bool_], choose: Choose = "many") -> dict[str, Any]:
    """The reliability curve over all pairs of sample and label, its expected calibration error, and the Brier score.

    logits, labels [samples, labels]. Bins are equally wide in probability; the error is the mean over all pairs of the
    distance between a bin's mean probability and its share of positives (Guo et al. 2017, On Calibration of Modern
    Neural Networks, eq. 3, with each pair's probability instead of the confidence). `curve` leaves empty bins out.
    Probabilities are the softmax's where a sample has exactly one label.
    """
    scores = log_odds(logits) if choose == "one" else logits.astype(np.float64)
    probability = 1 / (1 + np.exp(-np.clip(scores, -50, 50))).ravel()
    true = labels.ravel()
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    pairs, trues, probabilities = (
        np.bincount(bins, weights, BINS) for weights in (np.ones(len(bins)), true.astype(float), probability)
    )
    used = pairs > 0
    predicted, observed = probabilities[used] / pairs[used], trues[used] / pairs[used]
    return {
        "expected_calibration_error": float((pairs[used] * np.abs(predicted - observed)).sum() / len(bins)),
        "brier": float(((probability - true) ** 2).mean()),
        "curve": [
            {"predicted": float(x), "true": float(y), "pairs": int(n)}
            for x, y, n in zip(predicted, observed, pairs[used], strict=True)
        ],
    }
