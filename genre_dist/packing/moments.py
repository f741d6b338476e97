"""Mean and spread of a field's numbers."""

import numpy as np

from genre_dist.stream.manifest import Moments


class RunningMoments:
    """Mean and spread of a field's numbers, taken sample by sample (Welford); missing ones are passed over."""

    def __init__(self, count: int) -> None:
        self._seen, self._mean, self._squares = (np.zeros(count) for _ in range(3))

    def add(self, numbers: list[float]) -> None:
        values = np.array(numbers)
        there = ~np.isnan(values)
        self._seen += there
        away = np.where(there, values - self._mean, 0.0)
        self._mean += away / np.maximum(self._seen, 1)
        self._squares += away * np.where(there, values - self._mean, 0.0)

    @property
    def sums(self) -> list[list[float]]:
        """Count, mean and squared distances from it of each number."""
        return [part.tolist() for part in (self._seen, self._mean, self._squares)]

    def merge(self, sums: list[list[float]]) -> None:
        """Add the `sums` of other samples (Chan et al.)."""
        seen, mean, squares = map(np.array, sums)
        total, away = np.maximum(self._seen + seen, 1), mean - self._mean
        self._squares += squares + away**2 * self._seen * seen / total
        self._mean += away * seen / total
        self._seen += seen

    def result(self) -> Moments:
        std = np.sqrt(self._squares / np.maximum(self._seen, 1))
        return {"mean": self._mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}
