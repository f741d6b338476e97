"""Python's garbage collector, run between steps on all ranks together.

By default it stops each rank at another moment, for as long as scanning every object takes (0.2 s once torch is
imported), and all others wait in the next exchange of gradients. So objects that exist before the first step are
exempted (gc.freeze), and the ranks collect the others together, after the same steps.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

EVERY_STEPS = 50


class GarbageCollector:
    """A context in which garbage is collected after every 50th step and at no other time."""

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
        """A context with Python's own collection, for work without steps such as an evaluation."""
        gc.enable()
        try:
            yield
        finally:
            gc.disable()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()
