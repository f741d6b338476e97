"""Counts of data from outside that were not used, with an example for each reason."""

from collections import Counter

from genre_dist.printable import printable


class LeftOut:
    """For each reason, the number of items left out and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: object, count: int = 1) -> None:
        """Count items under a reason, a noun in the plural: 'files that are no picture'."""
        self.counts[reason] += count
        self._examples.setdefault(reason, str(example))

    def examples(self) -> list[tuple[str, str, int]]:
        """Reason, example and count of all, as `add` takes them."""
        return [(reason, self._examples[reason], count) for reason, count in self.counts.items()]

    def lines(self) -> list[str]:
        """A line for each reason, the most frequent first."""
        return [
            f"{count:,} {reason}, such as {printable(self._examples[reason])[:200]}"
            for reason, count in self.counts.most_common()
        ]
