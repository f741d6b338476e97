"""A reader that tells, as the faults of a batch, which modules its process has imported."""

import sys

from genre_dist.stream.found import Found, Seconds
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.slots import Arrays


class TellingReader(ShardReader):
    def fill(self, found: Found, out: Arrays) -> tuple[list[str], Seconds]:
        _, seconds = super().fill(found, out)
        return list(sys.modules), seconds

    def __reduce__(self) -> tuple[object, ...]:
        return TellingReader, super().__reduce__()[1]
