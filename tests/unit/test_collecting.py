"""While steps are taken, garbage is collected after the same steps on every rank, and at no other time."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import options

from genre_dist.train import main
from genre_dist.training import garbage as collecting
from genre_dist.training.garbage import EVERY_STEPS, GarbageCollector

pytestmark = pytest.mark.slow  # whole runs


class Knot:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def dropped_knot() -> "weakref.ref[Knot]":
    return weakref.ref(Knot())


def test_cycles_go_after_every_so_many_steps_and_only_then() -> None:
    with GarbageCollector() as collector:
        knot = dropped_knot()
        for number in range(1, EVERY_STEPS):
            [Knot() for _ in range(100)]  # by itself Python would have collected long ago
            collector.after_step(number)
        assert knot() is not None
        collector.after_step(EVERY_STEPS)
        assert knot() is None


def test_what_was_there_before_is_looked_at_again_only_afterwards() -> None:
    kept = [Knot()]
    knot = weakref.ref(kept[0])
    with GarbageCollector() as collector:
        kept.clear()
        collector.after_step(EVERY_STEPS)
        assert knot() is not None
    gc.collect()
    assert knot() is None


def test_an_evaluation_is_collected_as_usual_and_afterwards_all_is_as_before() -> None:
    with GarbageCollector() as collector:
        with collector.as_usual():
            assert gc.isenabled()
        assert not gc.isenabled()
        with pytest.raises(KeyError), collector.as_usual():  # one that was given up
            raise KeyError
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with GarbageCollector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.fixture
def asked_for() -> Iterator[list[str]]:
    """Collections that somebody asked for while Python would have made none."""
    seen: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and not gc.isenabled():
            seen.append(phase)

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_training_collects_by_the_number_of_its_steps(
    asked_for: list[str], sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "EVERY_STEPS", 3)
    more = ("--train.steps", 8, "--data.global_batch", 4, "--train.eval_every_steps", 5, "--data.workers", 0)
    assert main(options(sample_shards, tmp_path / "run", *more)) == 0
    assert len(asked_for) == 1 + 2  # at the start, after steps 3 and 6
    assert gc.isenabled()
