"""Python's garbage collector, out of the way of the steps.

Left to itself it stops each rank at another moment, for as long as looking at every object takes (0.2 s once torch is
imported), and all others wait in the next exchange of gradients. So what is there when the steps begin is left out for
good, and the ranks look at the rest together, after the same steps.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

EVERY_STEPS = 50


class GarbageCollector:
    """Within it, cycles of objects that nobody refers to are collected after every 50th step and at no other time."""

    def __enter__(self) -> Self:
        self._was_enabled = gc.isenabled()
        gc.disable()
        gc.collect()
        gc.freeze()
        return self

    def after_step(self, number: int) -> None:
        if number % EVERY_STEPS == 0:
            gc.collect()

    @contextmanager
    def as_usual(self) -> Iterator[None]:
        """For work that is not done in steps, an evaluation: here Python collects when it sees fit."""
        gc.enable()
        try:
            yield
        finally:
            gc.disable()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()
