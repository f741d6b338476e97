"""Readers: samples looked up by (shard, row), one positioned read each, no data kept but a few open files."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.schema import TMDB, Field
from genre_dist.stream.batch import ALL, BLANK, KINDS, Batch, Seconds, SlotSpec, private_memory, slot_batch
from genre_dist.stream.cache import BlockCache
from genre_dist.stream.fields import FieldReader, ImageReader, NumbersReader, Shapes, TextReader
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.refs import SampleRefs, look_up
from genre_dist.stream.sample import (
    ENCODING,
    label_rows,
    load_encoding,
    load_fault,
    load_genres,
    load_labels,
    sample_in,
)
from genre_dist.stream.source import ReadBuffer, source_of

if TYPE_CHECKING:
    from genre_dist.stream.foreign import Tars


TOGETHER = 32
"""Samples that are read at once to be looked at one by one."""
ENCODINGS = f"{ALL}.encodings"


class ReadError(NamedTuple):
    """Why a sample could not be read."""

    error: Exception
    data: memoryview
    """The bytes of the sample that were read."""


class FoundSample(NamedTuple):
    """A sample by itself."""

    id: int
    key: str
    """Its id as the data set has it, or the index's if it cannot be read."""
    members: Mapping[str, memoryview]
    error: Exception | None
    """Why it cannot be read."""
    where: str
    """Its tar, id and byte."""


class Reader:
    """Reads the samples of a split that have the wanted fields, or with `any_of` at least one of them.

    Subclasses parse a sample's bytes.

    Pickle sends a reader's arguments to a worker; open files stay here.
    """

    has_texts = False
    """The samples have texts, by whose length batches can be ordered."""
    in_process = False
    """Reading is so fast that worker processes do not help."""

    def __init__(
        self,
        manifest: "Manifest | Tars",
        split: str,
        wanted: tuple[str, ...],
        cache: BlockCache | None,
        any_of: bool = False,
    ) -> None:
        self.manifest, self.split, self.wanted, self.cache, self.any_of = manifest, split, wanted, cache, any_of
        self.index = SplitIndex(manifest, split, wanted, any_of)
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
        return f"{self._where(refs, number, name)}: {_reason(error)}"

    def _where(self, refs: SampleRefs, number: int, name: str) -> str:
        return f"{self.index.paths[refs.shard[number]]}: {name} at byte {refs.record['offset'][number]}"


class ShardReader(Reader):
    """Reads the samples of one split of packed shards, or of shards of encodings.

    A sample with a damaged member keeps its row in the batch: all its fields are blank (mid-grey, no words), its weight
    is 0, and a line in `Batch.faults` names shard, offset and id. A damaged encoding is an error: a run can encode the
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
        any_of: bool = False,
    ) -> None:
        """With decode=False the batches carry JPEGs, for a device that decodes them. The cache serves remote shards.

        With `any_of` samples need one of the wanted fields, not all; a batch then has PART.has of each.
        """
        super().__init__(manifest, split, wanted, cache, any_of)
        self.max_tokens, self.decode = max_tokens, decode
        schema = manifest.declared
        fields = [schema.by_name[name] for name in wanted]
        self.has_texts = any(field.kind == "text" for field in fields)
        self.in_process = manifest.encoding is not None
        self._bits = {f"{field.part}.has": schema.bit(field.name) for field in fields} if any_of else {}
        self._fields: list[tuple[int, FieldReader]] = []
        shapes: Shapes = dict.fromkeys(self._bits, ())
        if manifest.encoding is not None:
            shapes[ENCODINGS] = (manifest.encoding["size"],)
        else:
            self._fields = [(schema.bit(field.name), self._field_reader(field)) for field in fields]
        for _, field in self._fields:
            shapes |= field.shapes
        self._spec = SlotSpec(0, len(manifest.genres), tuple(shapes.items()))
        self._is_of_films, self._sample = schema == TMDB, schema.sample
        self._load_labels = load_genres if self._is_of_films else load_labels
        self._row = label_rows(manifest.label_ids, schema.label)

    def _field_reader(self, field: Field) -> FieldReader:
        if field.kind == "text":
            text = self.manifest.text
            return TextReader(field, self.max_tokens, int(text["words"]), text.get("closing", 0))
        if field.kind == "numbers":
            return NumbersReader(field, self.manifest.numbers[field.name])
        return ImageReader(field, int(self.manifest.image["size"]), self.decode)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.manifest, self.split, self.wanted, self.max_tokens, self.decode, self.cache, self.any_of)
        return type(self), arguments

    def slot_spec(self, samples: int) -> SlotSpec:
        return self._spec._replace(samples=samples)

    def lengths(self, rows: Rows) -> NDArray[np.int64]:
        return np.minimum(self.index.records(rows)["tokens"].astype(np.int64), self.max_tokens)

    def longest(self, refs: SampleRefs) -> int:
        return max(1, min(self.max_tokens, int(refs.record["tokens"].max(initial=0))))

    def keys(self, rows: Rows) -> list[str]:
        """The ids of samples as their data set has them; others than films' are read from the tars."""
        if self._is_of_films:
            return list(map(str, self.index.ids(rows).tolist()))
        return [found.key for found in self.samples(rows)]

    def members(self, data: memoryview, id: int, shard: int, offset: int) -> tuple[str, Mapping[str, memoryview]]:
        """The id, as its data set has it, and the members of the sample whose bytes lie at `offset` of a shard.

        `id` is the index's. Raises ValueError if they are another sample's.
        """
        return sample_in(data, id, self.manifest.declared)

    def samples(self, rows: Rows) -> Iterator[FoundSample]:
        """Samples one after the other. The members of one are there until the next is asked for."""
        for start in range(0, len(rows.row), TOGETHER):
            yield from self._found(self.refs(Rows(*(part[start : start + TOGETHER] for part in rows))))

    def _found(self, refs: SampleRefs) -> Iterator[FoundSample]:
        ids, shards, offsets = refs.record["id"].tolist(), refs.shard.tolist(), refs.record["offset"].tolist()
        read: dict[int, tuple[str, Mapping[str, memoryview]]] = {}

        def take(number: int, data: memoryview) -> None:
            read[number] = self.members(data, ids[number], shards[number], offsets[number])

        problems = self.take_each(refs, take)
        for number, id in enumerate(ids):
            key, members = read.get(number, (str(id), {}))
            error = problems[number].error if number in problems else None
            yield FoundSample(id, key, members, error, self._where(refs, number, f"{self._sample} {printable(key)}"))

    def has_fields(self) -> dict[str, NDArray[np.bool_]]:
        """Field -> whether each sample has it, in stored order, bool [samples]."""
        index, bit = self.index, self.manifest.declared.bit
        parts = [index.records(index.rows_of(number))["has"] for number in range(len(index.sizes))]
        has = np.concatenate([*parts, np.empty(0, np.uint16)])
        return {name: (has & bit(name)) > 0 for name in self.wanted}

    def fill(self, refs: SampleRefs, batch: Batch) -> None:
        began = time.perf_counter()
        ids, has, offsets = (refs.record[name].tolist() for name in ("id", "has", "offset"))
        shards = refs.shard.tolist()
        batch.ids[:], batch.labels[:], batch.weights[:] = ids, 0, 1
        batch.samples = [] if self._is_of_films else list(map(str, ids))  # until their own ids are read
        for name, array in batch.arrays.items():
            if name in self._bits:
                array[:] = (refs.record["has"] & self._bits[name]) > 0
            elif not name.endswith(".images"):
                array[:] = KINDS[name.split(".")[1]].blank
            elif self.any_of:  # every other image will be decoded into its place
                array[(refs.record["has"] & self._bits[name.replace(".images", ".has")]) == 0] = BLANK

        def take(number: int, data: memoryview) -> None:
            key, members = self.members(data, ids[number], shards[number], offsets[number])
            if not self._is_of_films:
                batch.samples[number] = key
            if ENCODINGS in batch.arrays:
                self._take_encoding(members, number, batch)
                return
            batch.labels[number] = self._row(self._load_labels(members["json"]))
            for bit, field in self._fields:
                if has[number] & bit:
                    field.take(number, members[field.extension], batch)

        problems = {number: problem.error for number, problem in self.take_each(refs, take).items()}
        if ENCODINGS in batch.arrays and problems:
            number = min(problems)
            raise ValueError(
                f"{self.index.paths[refs.shard[number]]}: the encoding of {self._name(batch, number)} cannot be read "
                f"({_reason(problems[number])}); delete {self.manifest.folder}, it is made again"
            )
        read = time.perf_counter()
        for _, field in self._fields:
            field.finish(batch, problems)
        for number in problems:
            batch.clear(number)
        batch.faults += [self.describe(refs, n, self._name(batch, n), problems[n]) for n in sorted(problems)]
        batch.seconds = Seconds(read - began, time.perf_counter() - read)

    def _name(self, batch: Batch, number: int) -> str:
        """What a message calls a sample of a batch."""
        return f"{self._sample} {printable(batch.samples[number] if batch.samples else batch.ids[number])}"

    def _take_encoding(self, members: Mapping[str, memoryview], number: int, batch: Batch) -> None:
        encodings = batch.arrays[ENCODINGS]
        encodings[number] = load_encoding(members[ENCODING], encodings.shape[1])
        if fault := load_fault(members["json"]):
            batch.weights[number] = 0
            batch.faults.append(fault)
        else:
            batch.labels[number] = self._row(self._load_labels(members["json"]))


def _reason(error: Exception) -> str:
    return f"no member .{error.args[0]}" if isinstance(error, KeyError) else printable(error)
