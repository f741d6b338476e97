"""Readers: samples looked up by (shard, row), one positioned read each, no data kept but a few open files."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.stream.batch import BLANK, Batch, Seconds, SlotSpec, private_memory, slot_batch
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.decode import check_jpeg, decode_jpeg, decoder
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.refs import SampleRefs, look_up
from genre_dist.stream.sample import (
    ENCODING,
    PADDING,
    check_tokens,
    cut,
    label_rows,
    load_encoding,
    load_fault,
    load_genres,
    read_members,
    read_tokens,
)
from genre_dist.stream.source import ReadBuffer, source_of

if TYPE_CHECKING:
    from genre_dist.stream.foreign import Tars


class ReadError(NamedTuple):
    """Why a sample could not be read."""

    error: Exception
    data: memoryview
    """The bytes of the sample that were read."""


class Reader:
    """Reads the samples of a split that have the wanted members. Subclasses parse a sample's bytes.

    Pickle sends a reader's arguments to a worker; open files stay here.
    """

    has_texts = False
    """The samples have texts, by whose length batches can be ordered."""
    in_process = False
    """Reading is so fast that worker processes do not help."""

    def __init__(
        self, manifest: "Manifest | Tars", split: str, wanted: tuple[str, ...], cache: BlockCache | None
    ) -> None:
        self.manifest, self.split, self.wanted, self.cache = manifest, split, wanted, cache
        self.index = SplitIndex(manifest, split, wanted)
        self._source, self._buffer = source_of(self.index, cache), ReadBuffer()

    def slot_spec(self, samples: int) -> SlotSpec:
        """Capacity of a slot for batches of up to this many samples."""
        return SlotSpec(samples)

    def lengths(self, rows: Rows) -> NDArray[np.int64]:
        """Text lengths after truncation, int64 [n]; 0 if unknown."""
        return np.zeros(len(rows.row), np.int64)

    def longest(self, refs: SampleRefs) -> int:
        """Width of a batch's token array: its longest text, at least 1."""
        return 1

    def refs(self, rows: Rows) -> SampleRefs:
        """Samples looked up in the index."""
        return look_up(self.index, rows)

    def read(self, rows: Rows) -> Batch:
        """The samples at these rows, in this order, in fresh memory."""
        refs, spec = self.refs(rows), self.slot_spec(len(rows.row))
        batch = slot_batch(private_memory(1, spec), 0, spec, len(rows.row), self.longest(refs))
        self.fill(refs, batch)
        return batch

    def fill(self, refs: SampleRefs, batch: Batch) -> None:
        """Read samples into a batch's allocated arrays; set its faults and seconds."""
        raise NotImplementedError

    def take_each(self, refs: SampleRefs, take: Callable[[int, memoryview], None]) -> dict[int, ReadError]:
        """Call take(number, bytes) for every sample; returns the errors by the sample's number in the batch."""
        self._source.prepare(refs)
        sizes, offsets = refs.record["size"].tolist(), refs.record["offset"].tolist()
        problems: dict[int, ReadError] = {}
        samples = zip(refs.shard.tolist(), offsets, self._buffer.split(sizes), strict=True)
        for number, (shard, offset, buffer) in enumerate(samples):
            data = buffer[:0]
            try:
                data = self._source.read(shard, offset, buffer)
                if len(data) < len(buffer):
                    raise ValueError(f"the file ends {len(buffer) - len(data)} bytes early; it is truncated")
                take(number, data)
            except (ValueError, KeyError, OSError) as error:
                problems[number] = ReadError(error, data)
        return problems

    def describe(self, refs: SampleRefs, number: int, name: str, error: Exception) -> str:
        """A line for a sample that could not be read."""
        where = f"{self.index.paths[refs.shard[number]]}: {name} at byte {refs.record['offset'][number]}"
        return f"{where}: {_reason(error)}"


class ShardReader(Reader):
    """Reads the samples of one split of packed shards, or of shards of encodings.

    A sample with a damaged member keeps its row in the batch: its members are blank (mid-grey, no words), its weight is
    0, and a line in `Batch.faults` names shard, offset and film. A damaged encoding is an error: a run can encode the
    sample again.
    """

    manifest: Manifest

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        wanted: tuple[str, ...],
        max_tokens: int,
        decode: bool = True,
        cache: BlockCache | None = None,
    ) -> None:
        """With decode=False the batches carry JPEGs, for a device that decodes them. The cache serves remote shards."""
        super().__init__(manifest, split, wanted, cache)
        self.max_tokens, self.decode = max_tokens, decode
        self.has_texts, self.in_process = "overview" in wanted, manifest.encoding is not None
        if manifest.encoding is not None:
            self._spec = SlotSpec(0, len(manifest.genres), encoding_size=manifest.encoding["size"])
        else:
            image_size = int(manifest.image["size"]) if "poster" in wanted else 0
            keeps_jpegs = image_size > 0 and not decode
            self._spec = SlotSpec(0, len(manifest.genres), image_size, max_tokens if self.has_texts else 0, keeps_jpegs)
        if self._spec.image_size:
            decoder()  # raises here, not in a worker, if none is installed
        self._words = int(manifest.text["words"])
        self._closing = manifest.text.get("closing", 0)
        self._labels = label_rows(manifest.genres)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.manifest, self.split, self.wanted, self.max_tokens, self.decode, self.cache)

    def slot_spec(self, samples: int) -> SlotSpec:
        return self._spec._replace(samples=samples)

    def lengths(self, rows: Rows) -> NDArray[np.int64]:
        return np.minimum(self.index.records(rows)["tokens"].astype(np.int64), self.max_tokens)

    def longest(self, refs: SampleRefs) -> int:
        return max(1, min(self._spec.max_tokens, int(refs.record["tokens"].max(initial=0))))

    def fill(self, refs: SampleRefs, batch: Batch) -> None:
        began = time.perf_counter()
        ids = refs.record["id"].tolist()
        batch.ids[:], batch.labels[:], batch.weights[:] = ids, 0, 1
        if batch.tokens is not None and batch.lengths is not None:
            batch.tokens[:], batch.lengths[:] = PADDING, 0
        jpegs: dict[int, memoryview] = {}

        def take(number: int, data: memoryview) -> None:
            parts = read_members(data, ids[number])
            if batch.encodings is not None:
                self._take_encoding(parts, number, batch)
                return
            batch.labels[number] = self._labels(load_genres(parts["json"]))
            if batch.tokens is not None:
                self._take_text(parts["tokens.npy"], number, batch)
            if batch.images is not None:
                jpegs[number] = parts["jpg"]

        problems = {number: problem.error for number, problem in self.take_each(refs, take).items()}
        if batch.encodings is not None and problems:
            number = min(problems)
            raise ValueError(
                f"{self.index.paths[refs.shard[number]]}: the encoding of film {ids[number]} cannot be read "
                f"({_reason(problems[number])}); delete {self.manifest.folder}, it is made again"
            )
        self._check_words(batch, problems)
        read = time.perf_counter()  # decoding runs apart: interleaved with parsing, both lose their CPU caches (4 %)
        self._decode(jpegs, problems, batch)
        for number in problems:
            batch.weights[number], batch.labels[number] = 0, 0
            if batch.tokens is not None and batch.lengths is not None:
                batch.tokens[number], batch.lengths[number] = PADDING, 0
            if batch.images is not None:
                batch.images[number] = BLANK
        batch.faults += [self.describe(refs, n, f"film {ids[n]}", problems[n]) for n in sorted(problems)]
        batch.seconds = Seconds(read - began, time.perf_counter() - read)

    def _take_text(self, data: memoryview, number: int, batch: Batch) -> None:
        assert batch.tokens is not None
        assert batch.lengths is not None
        tokens = read_tokens(data)
        if len(tokens) > self.max_tokens:  # _check_words does not see the truncated tokens
            check_tokens(tokens, self._words)
            tokens = cut(tokens, self.max_tokens, self._closing)
        if len(tokens) > batch.tokens.shape[1]:
            raise ValueError(f"{len(tokens)} tokens, more than the index has; the index is of another tar")
        batch.tokens[number, : len(tokens)] = tokens
        batch.lengths[number] = len(tokens)

    def _take_encoding(self, parts: dict[str, memoryview], number: int, batch: Batch) -> None:
        assert batch.encodings is not None
        batch.encodings[number] = load_encoding(parts[ENCODING], self._spec.encoding_size)
        if fault := load_fault(parts["json"]):
            batch.weights[number] = 0
            batch.faults.append(fault)
        else:
            batch.labels[number] = self._labels(load_genres(parts["json"]))

    def _check_words(self, batch: Batch, problems: dict[int, Exception]) -> None:
        """Find texts with a token outside the vocabulary; one check of the whole batch costs as much as of one text."""
        tokens = batch.tokens
        if tokens is not None and tokens.size and tokens.view(np.uint32).max() >= self._words:
            for number, text in enumerate(tokens):
                try:
                    check_tokens(text, self._words)
                except ValueError as error:
                    problems.setdefault(number, error)

    def _decode(self, jpegs: dict[int, memoryview], problems: dict[int, Exception], batch: Batch) -> None:
        """Decode JPEGs into the batch's images, or copy them there undecoded."""
        if batch.images is None:
            return
        if batch.jpeg_bytes is not None:
            batch.jpeg_bytes[:] = 0
        for number, jpeg in jpegs.items():
            if number in problems:
                continue
            try:
                if batch.jpeg_bytes is None:
                    decode_jpeg(jpeg, batch.images[number])
                else:
                    batch.jpeg_bytes[number] = _keep_jpeg(jpeg, batch.images[number])
            except ValueError as error:
                problems[number] = error


def _reason(error: Exception) -> str:
    return f"no member .{error.args[0]}" if isinstance(error, KeyError) else printable(error)


def _keep_jpeg(data: memoryview, out: NDArray[np.uint8]) -> int:
    """Copy a JPEG of the shape of `out` into the memory of its pixels; returns its size. Raises ValueError if unfit."""
    check_jpeg(data, out.shape)
    if len(data) > out.size:
        raise ValueError(f"a JPEG of {len(data)} bytes, more than its {out.size} pixels take; data.decode=cpu reads it")
    out.reshape(-1)[: len(data)] = data
    return len(data)
