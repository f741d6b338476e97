"""A reader that tells, as the faults of a batch, which modules its process has imported."""

import sys

from genre_dist.stream.batch import Batch
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.refs import SampleRefs


class TellingReader(ShardReader):
    def fill(self, refs: SampleRefs, batch: Batch) -> None:
        super().fill(refs, batch)
        batch.faults = list(sys.modules)
