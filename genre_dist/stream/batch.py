"""A batch on the host and its shared memory: reader processes fill it and the trainer reads it without a copy.

A slot holds one batch. All slots of a ring share one anonymous memory file (memfd_create): the file has no name in any
folder, every process maps the same pages, and the kernel frees it when its last process ends, however that ends.
The pages are reused; loaders built on queues lose their time allocating and copying a fresh array for every batch.
"""

import math
import mmap
import os
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
    labels: NDArray[np.float32]  # [n, genres], 0 or 1
    weights: NDArray[np.float32]  # [n], 0 for a sample that could not be read
    images: NDArray[np.uint8] | None = None  # [n, size, size, 3] RGB
    tokens: NDArray[np.int32] | None = None  # [n, longest], padded with PADDING
    lengths: NDArray[np.int64] | None = None  # [n]
    faults: list[str] = field(default_factory=list)  # a line for each sample that could not be read
    encodings: NDArray[np.float32] | None = None  # [n, E] in place of images and tokens, from shards of encodings
    samples: list[Any] = field(default_factory=list)  # [n] of WebDataset tars: members, or the result of `decode`
    seconds: Seconds = field(default_factory=Seconds)
    jpeg_bytes: NDArray[np.int32] | None = None  # [n] if `images` holds JPEGs: bytes of each row; 0: none
    pixels: "Tensor | None" = None  # the images on a device that decoded them, uint8 [n, size, size, 3]
    copied: "Event | None" = None  # set by a background copy; the arrays must stay until then

    def blank(self) -> "Batch":
        """One blank sample of weight 0, with the arrays that this batch has."""
        blank: dict[str, Any] = {}
        for name, array in vars(self).items():
            if isinstance(array, np.ndarray):
                shape = (1, 1) if name == "tokens" else (1, *array.shape[1:])
                blank[name] = np.full(shape, BLANK if name == "images" else 0, array.dtype)
        return Batch(**blank)


def part_of(batch: Batch, part: slice) -> Batch:
    """A slice of a batch, as views; the first slice carries the batch's faults."""
    arrays: dict[str, Any] = {name: value[part] for name, value in vars(batch).items() if hasattr(value, "shape")}
    return replace(batch, **arrays, faults=batch.faults if part.start == 0 else [], copied=None)


class SlotSpec(NamedTuple):
    """Capacity of a slot; a size is 0 if the model takes no such array."""

    samples: int
    genres: int = 0
    image_size: int = 0
    """Side of the square images."""
    max_tokens: int = 0
    """Longest text."""
    keeps_jpegs: bool = False
    """The array of images holds JPEGs, for a device that decodes them."""
    encoding_size: int = 0

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """A batch's arrays by name: the shape of one sample and its dtype."""
        arrays: dict[str, tuple[tuple[int, ...], Any]] = {
            "ids": ((), np.int64),
            "labels": ((self.genres,), np.float32),
            "weights": ((), np.float32),
        }
        if self.max_tokens:
            arrays |= {"lengths": ((), np.int64), "tokens": ((self.max_tokens,), np.int32)}
        if self.image_size:
            arrays["images"] = ((self.image_size, self.image_size, 3), np.uint8)
        if self.keeps_jpegs:
            arrays["jpeg_bytes"] = ((), np.int32)
        if self.encoding_size:
            arrays["encodings"] = ((self.encoding_size,), np.float32)
        return arrays


@lru_cache
def _layout(spec: SlotSpec) -> tuple[dict[str, int], int]:
    """Aligned offset of each array in a slot, and the slot's bytes, a whole number of pages."""
    starts, end = dict[str, int](), 0
    for name, (shape, dtype) in spec.arrays.items():
        beside = BESIDE if name == "images" else 0
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
    for name, (shape, dtype) in spec.arrays.items():
        dims = (samples, longest) if name == "tokens" else (samples, *shape)
        views[name] = np.frombuffer(memory, dtype, math.prod(dims), slot * size + starts[name]).reshape(dims)
    return Batch(**views)


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
