"""A batch on the host and its shared memory: reader processes fill it and the trainer reads it without a copy.

A slot holds one batch. All slots of a ring share one anonymous memory file (memfd_create): the file has no name in any
folder, every process maps the same pages, and the kernel frees it when its last process ends, however that ends.
The pages are reused; loaders built on queues lose their time allocating and copying a fresh array for every batch.
"""

import math
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the stream needs no torch
    from torch import Tensor
    from torch.cuda import Event

ALIGNMENT = 64
BESIDE = 16
"""Offset of the images from a 32-byte boundary: libjpeg-turbo writes rows that are aligned to 32 bytes past the
caches (vmovntdq in its simd/x86_64/jdcolext-avx2.asm), which took 12 % of the decoding time (benchmarks/RESULTS.md)."""
BLANK = 128
"""Mid-grey, the pixels of an image that could not be read."""


class Kind(NamedTuple):
    """A kind of array that a batch may have for a part of the model."""

    dtype: Any
    blank: float = 0
    """Its value for a sample without the field, or one that could not be read."""


KINDS = {
    "images": Kind(np.uint8, BLANK),  # [n, size, size, 3] RGB, or the bytes of JPEGs
    "jpeg_bytes": Kind(np.int32),  # [n] if `images` holds JPEGs: bytes of each; 0: none
    "tokens": Kind(np.int32),  # [n, longest], padded with PADDING
    "lengths": Kind(np.int64),  # [n] tokens of each text
    "numbers": Kind(np.float32, np.nan),  # [n, numbers]; NaN: missing
    "has": Kind(np.bool_),  # [n] whether a sample has the field, if samples may lack it
    "encodings": Kind(np.float32),  # [n, E] of all parts together, from shards of encodings
}
"""The arrays of a batch are named PART.KIND (`poster.images`, `text.tokens`)."""
ALL = "all"
"""The part in the name of an array that belongs to all parts."""


class Seconds(NamedTuple):
    """Time spent on a batch, summed over the processes that read it."""

    read: float = 0.0
    """Reading and parsing."""
    decode: float = 0.0
    idle: float = 0.0
    """Waiting for a free slot: the readers are ahead of the trainer."""


@dataclass
class Batch:
    """n samples on the host. n may be 0: a rank's share of an epoch's last step can be empty."""

    ids: NDArray[np.int64]  # [n]
    labels: NDArray[np.float32]  # [n, labels], 0 or 1
    weights: NDArray[np.float32]  # [n], 0 for a sample that could not be read
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)  # by PART.KIND, see KINDS
    faults: list[str] = field(default_factory=list)  # a line for each sample that could not be read
    samples: list[Any] = field(default_factory=list)
    """[n] of a declared data set: ids; of WebDataset tars: members, or the result of `decode`."""
    seconds: Seconds = field(default_factory=Seconds)
    pixels: "dict[str, Tensor]" = field(default_factory=dict)  # images that a device decoded, by the array's name
    copied: "Event | None" = None  # set by a background copy; the arrays must stay until then

    def of(self, kind: str) -> dict[str, NDArray[Any]]:
        """The arrays of a kind by part of the model."""
        named = (name.split(".") for name in self.arrays)
        return {part: self.arrays[f"{part}.{kind}"] for part, own in named if own == kind}

    def only(self, kind: str) -> NDArray[Any] | None:
        """The array of a kind that one part has at most; None without one."""
        return next(iter(self.of(kind).values()), None)

    @property
    def images(self) -> NDArray[np.uint8] | None:
        """The images [n, size, size, 3] of the only part that takes images."""
        return self.only("images")

    @property
    def tokens(self) -> NDArray[np.int32] | None:
        """The texts [n, longest] of the only part that takes texts, padded with PADDING."""
        return self.only("tokens")

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """The lengths [n] of these texts."""
        return self.only("lengths")

    def each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "Batch":
        """The batch with every array changed."""
        arrays = {name: change(array) for name, array in self.arrays.items()}
        return replace(
            self, ids=change(self.ids), labels=change(self.labels), weights=change(self.weights), arrays=arrays
        )

    def clear(self, number: int) -> None:
        """Make a sample blank, as one that could not be read."""
        self.weights[number], self.labels[number] = 0, 0
        for name, array in self.arrays.items():
            if not name.endswith(".has"):  # a damaged image is an image, a blank one
                array[number] = KINDS[name.split(".")[1]].blank

    def blank(self) -> "Batch":
        """One blank sample of weight 0, with the arrays that this batch has."""
        arrays = {}
        for name, array in self.arrays.items():
            kind = name.split(".")[1]
            shape = (1, 1) if kind == "tokens" else (1, *array.shape[1:])
            arrays[name] = np.full(shape, KINDS[kind].blank, array.dtype)
        labels = np.zeros((1, self.labels.shape[1]), self.labels.dtype)
        return Batch(np.zeros(1, np.int64), labels, np.zeros(1, np.float32), arrays)


def part_of(batch: Batch, part: slice) -> Batch:
    """A slice of a batch, as views; the first slice carries the batch's faults."""
    pixels = {name: pixels[part] for name, pixels in batch.pixels.items()}
    faults = batch.faults if part.start == 0 else []
    return replace(batch.each(lambda array: array[part]), pixels=pixels, faults=faults, copied=None)


class SlotSpec(NamedTuple):
    """Capacity of a slot."""

    samples: int
    labels: int = 0
    arrays: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Name and shape of one sample of each array; a text's is its longest."""

    @property
    def every(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """All of a batch's arrays by name: the shape of one sample and its dtype."""
        named = {name: (shape, KINDS[name.split(".")[1]].dtype) for name, shape in self.arrays}
        return {"ids": ((), np.int64), "labels": ((self.labels,), np.float32), "weights": ((), np.float32)} | named


@lru_cache
def _layout(spec: SlotSpec) -> tuple[dict[str, int], int]:
    """Aligned offset of each array in a slot, and the slot's bytes, a whole number of pages."""
    starts, end = dict[str, int](), 0
    for name, (shape, dtype) in spec.every.items():
        beside = BESIDE if name.endswith(".images") else 0
        starts[name] = end + beside
        size = beside + spec.samples * math.prod(shape) * np.dtype(dtype).itemsize
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return starts, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE


def slot_bytes(spec: SlotSpec) -> int:
    """Bytes of one slot."""
    return _layout(spec)[1]


def slot_batch(memory: mmap.mmap, slot: int, spec: SlotSpec, samples: int, longest: int) -> Batch:
    """A batch of `samples` with texts of up to `longest` tokens, as views of a slot."""
    starts, size = _layout(spec)
    views: dict[str, Any] = {}
    for name, (shape, dtype) in spec.every.items():
        dims = (samples, longest) if name.endswith(".tokens") else (samples, *shape)
        views[name] = np.frombuffer(memory, dtype, math.prod(dims), slot * size + starts[name]).reshape(dims)
    return Batch(views.pop("ids"), views.pop("labels"), views.pop("weights"), views)


def anonymous_file(slots: int, spec: SlotSpec) -> int:
    """File descriptor of shared memory for this many slots. Raises OSError if memory is short."""
    descriptor = os.memfd_create("slots")
    os.ftruncate(descriptor, slots * slot_bytes(spec))
    return descriptor


def private_memory(slots: int, spec: SlotSpec) -> mmap.mmap:
    """Private memory for this many slots, in huge pages if the system grants them.

    Linux by default grants none to shared memory (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
    """
    memory = mmap.mmap(-1, slots * slot_bytes(spec), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
