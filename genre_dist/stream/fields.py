"""How each kind of field is read: a member of a tar becomes a row of a batch's arrays.

A reader keeps one object for each field that its model takes. `take` gets a sample's member, `finish` ends a batch.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genre_dist.schema import Field
from genre_dist.stream.batch import Batch
from genre_dist.stream.decode import check_jpeg, decode_jpeg, decoder
from genre_dist.stream.manifest_base import Moments
from genre_dist.stream.sample import check_tokens, cut, read_numbers, read_tokens

Problems = dict[int, Exception]
"""The samples of a batch that could not be read, by number."""
Shapes = dict[str, tuple[int, ...]]
"""The shape of one sample of each array, by its name in a batch."""


class FieldReader(Protocol):
    """Reads one field of a batch's samples into its arrays."""

    extension: str
    shapes: Shapes

    def take(self, number: int, member: memoryview, batch: Batch) -> None:
        """Take the member of a sample, given by its number in the batch. Raises ValueError if it is damaged."""

    def finish(self, batch: Batch, problems: Problems) -> None:
        """End a batch; samples that turn out to be damaged are added to the problems."""


class TextReader:
    """Token ids, cut to `max_tokens` but for the `closing` last ones; an id is below `words`."""

    def __init__(self, field: Field, max_tokens: int, words: int, closing: int = 0) -> None:
        self.extension, self.max_tokens, self.words, self.closing = field.extension, max_tokens, words, closing
        self.tokens, self.lengths = f"{field.part}.tokens", f"{field.part}.lengths"
        self.shapes: Shapes = {self.lengths: (), self.tokens: (max_tokens,)}

    def take(self, number: int, member: memoryview, batch: Batch) -> None:
        tokens, row = read_tokens(member), batch.arrays[self.tokens][number]
        if len(tokens) > self.max_tokens:  # `finish` does not see the truncated tokens
            check_tokens(tokens, self.words)
            tokens = cut(tokens, self.max_tokens, self.closing)
        if len(tokens) > len(row):
            raise ValueError(f"{len(tokens)} tokens, more than the index has; the index is of another tar")
        row[: len(tokens)] = tokens
        batch.arrays[self.lengths][number] = len(tokens)

    def finish(self, batch: Batch, problems: Problems) -> None:
        """Find tokens outside the vocabulary; one check of the whole batch costs as much as of one text."""
        tokens = batch.arrays[self.tokens]
        if tokens.size and tokens.view(np.uint32).max() >= self.words:
            for number, text in enumerate(tokens):
                try:
                    check_tokens(text, self.words)
                except ValueError as error:
                    problems.setdefault(number, error)


class ImageReader:
    """JPEGs of one size, decoded into pixels; without `decode` kept as they are, for a device that decodes them."""

    def __init__(self, field: Field, size: int, decode: bool) -> None:
        self.extension, self.decode = field.extension, decode
        self.images, self.jpeg_bytes = f"{field.part}.images", f"{field.part}.jpeg_bytes"
        self.shapes: Shapes = {self.images: (size, size, 3)} | ({} if decode else {self.jpeg_bytes: ()})
        self._jpegs: dict[int, memoryview] = {}
        decoder()  # raises here, not in a worker, if none is installed

    def take(self, number: int, member: memoryview, batch: Batch) -> None:
        self._jpegs[number] = member

    def decode_into(self, file: memoryview, out: NDArray[np.uint8]) -> None:
        """Decode an image into `out`, uint8 [size, size, 3]. Raises ValueError if it is damaged."""
        decode_jpeg(file, out)

    def finish(self, batch: Batch, problems: Problems) -> None:
        """Decode the images apart from parsing: interleaved, both lose their CPU caches (4 %)."""
        images = batch.arrays[self.images]
        for number, jpeg in self._jpegs.items():
            if number in problems:
                continue
            try:
                if self.decode:
                    self.decode_into(jpeg, images[number])
                else:
                    batch.arrays[self.jpeg_bytes][number] = _keep_jpeg(jpeg, images[number])
            except ValueError as error:
                problems[number] = error
        self._jpegs = {}


class NumbersReader:
    """A row of numbers, standardised; NaN for a missing one."""

    def __init__(self, field: Field, moments: Moments) -> None:
        self.extension = field.extension
        self.mean, self.deviation = (np.array(moments[what], np.float32) for what in ("mean", "std"))
        self.numbers = f"{field.part}.numbers"
        self.shapes: Shapes = {self.numbers: (len(self.mean),)}

    def take(self, number: int, member: memoryview, batch: Batch) -> None:
        values = read_numbers(member, len(self.mean))
        batch.arrays[self.numbers][number] = (values - self.mean) / self.deviation

    def finish(self, batch: Batch, problems: Problems) -> None:
        """Nothing is left to do."""


def _keep_jpeg(data: memoryview, out: NDArray[Any]) -> int:
    """Copy a JPEG of the shape of `out` into the memory of its pixels; returns its size. Raises ValueError if unfit."""
    check_jpeg(data, out.shape)
    if len(data) > out.size:
        raise ValueError(f"a JPEG of {len(data)} bytes, more than its {out.size} pixels take; data.decode=cpu reads it")
    out.reshape(-1)[: len(data)] = data
    return len(data)
