"""What is not used of other people's data: how much of it, and an example."""

from collections import Counter

from genre_dist.printable import printable


class LeftOut:
    """For each reason, how many things it kept out and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: object, count: int = 1) -> None:
        """Count things under a reason, which is told in the plural: 'files that are no picture'."""
        self.counts[reason] += count
        self._examples.setdefault(reason, str(example))

    def lines(self) -> list[str]:
        """A line for each reason, the most frequent first."""
        return [
            f"{count:,} {reason}, such as {printable(self._examples[reason])[:200]}"
            for reason, count in self.counts.most_common()
        ]
