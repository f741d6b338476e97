"""Memory that reader processes fill and the trainer reads without a copy.

A slot holds one batch. All slots of a ring lie in one anonymous memory file (memfd_create): it has no name in any
folder, every process maps the same pages, and it is gone when the last process that has it is gone, however that ends.
The pages are used again and again; making and copying a fresh array for every batch is what holds back loaders built on
queues.
"""

import math
import mmap
import os
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
BESIDE = 16
"""Pictures begin so many bytes beside an address that 32 divides: libjpeg-turbo writes rows that begin at one past the
caches (vmovntdq in its simd/x86_64/jdcolext-avx2.asm), which took 12 % of the decoding time (benchmarks/RESULTS.md)."""


class Room(NamedTuple):
    """What a slot can take."""

    samples: int
    genres: int
    image_size: int
    """Side of the square images; 0 if the model takes none."""
    max_tokens: int
    """Longest text; 0 if the model takes none."""


class Arrays(NamedTuple):
    """One batch's arrays in a slot, or on the heap."""

    ids: NDArray[np.int64]  # [n]
    lengths: NDArray[np.int64]  # [n]
    labels: NDArray[np.float32]  # [n, genres]
    weights: NDArray[np.float32]  # [n]
    tokens: NDArray[np.int32]  # [n, longest]
    images: NDArray[np.uint8]  # [n, size, size, 3]; or JPEGs, each at the beginning of its picture's place
    jpeg_bytes: NDArray[np.int32]  # [n] their sizes


def slot_bytes(room: Room) -> int:
    """Bytes of one slot, a whole number of pages."""
    size = sum(_sizes(room).values())
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def arrays(memory: mmap.mmap, slot: int, room: Room, samples: int, longest: int) -> Arrays:
    """The arrays of a batch of `samples` with texts of up to `longest` tokens, in a slot of the memory."""
    start = slot * slot_bytes(room)
    views = {}
    wanted = {
        "ids": ((samples,), np.int64),
        "lengths": ((samples,), np.int64),
        "labels": ((samples, room.genres), np.float32),
        "weights": ((samples,), np.float32),
        "tokens": ((samples, longest), np.int32),
        "images": ((samples, room.image_size, room.image_size, 3), np.uint8),
        "jpeg_bytes": ((samples,), np.int32),
    }
    for name, size in _sizes(room).items():
        dims, dtype = wanted[name]
        first = start + BESIDE if name == "images" else start
        views[name] = np.frombuffer(memory, dtype, math.prod(dims), first).reshape(dims)
        start += size
    return Arrays(**views)


def samples_of(whole: Arrays, part: slice) -> Arrays:
    """Some samples of a batch, as views."""
    return Arrays(**{name: array[part] for name, array in whole._asdict().items()})


def _sizes(room: Room) -> dict[str, int]:
    """Bytes of each array of a full slot, aligned."""
    n = room.samples
    sizes = {
        "ids": 8 * n,
        "lengths": 8 * n,
        "labels": 4 * n * room.genres,
        "weights": 4 * n,
        "tokens": 4 * n * max(1, room.max_tokens),
        "images": BESIDE + 3 * n * room.image_size**2,
        "jpeg_bytes": 4 * n,
    }
    return {name: -(-size // ALIGNMENT) * ALIGNMENT for name, size in sizes.items()}


def anonymous_file(slots: int, room: Room) -> int:
    """A file descriptor of memory for this many slots. Raises OSError if there is not enough."""
    descriptor = os.memfd_create("slots")
    os.ftruncate(descriptor, slots * slot_bytes(room))
    return descriptor


def private_memory(slots: int, room: Room) -> mmap.mmap:
    """Memory of this process for so many slots, in huge pages where the system gives them on request.

    Memory that is shared gets none by Linux's defaults (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
    """
    memory = mmap.mmap(-1, slots * slot_bytes(room), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
