"""Random kills, pauses, full disks and few descriptors, on every stage: nothing is lost, doubled or left behind.

python -m pytest tests/chaos                                              every stage once
python -m pytest tests/chaos --chaos_minutes 60 --chaos_seed 7 -s         for an hour
python -m pytest tests/chaos --chaos_seed 7 --chaos_only 42 -s            attack 42 of that hour once more
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from attack import Report, attack
from stages import Reference, Stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]  # every start of an attack has a deadline of its own


def numbers(stages: int, minutes: float, only: list[int] | None) -> Iterator[int]:
    """The attacks asked for: some, each stage once, or as many as begin in the time."""
    ends = time.monotonic() + 60 * minutes
    for number in only or count():
        if not only and time.monotonic() >= ends and number >= stages:
            return
        yield number


def attacked(stages: list[Stage], number: int, seed: int) -> Stage:
    """The stage of an attack: all of them in turn, in another order each time."""
    turn, place = divmod(number, len(stages))
    return random.Random(f"turn {turn} of seed {seed}").sample(stages, len(stages))[place]


def summary(reports: list[Report], seed: int) -> str:
    told = Counter(report.stage for report in reports)
    attacks = ", ".join(f"{name} {times}" for name, times in sorted(told.items()))
    lost = [str(report.number) for report in reports if report.lost]
    minutes = sum(report.seconds for report in reports) / 60
    return f"seed {seed}: {len(reports)} attacks in {minutes:.1f} minutes ({attacks}), {len(lost)} with losses" + (
        f": {', '.join(lost)}" if lost else ""
    )


def test_chaos_leaves_every_result_as_an_undisturbed_run_leaves_it(
    stages: list[Stage],
    reference: Callable[[Stage], Reference],
    asked_to_end: None,
    pytestconfig: pytest.Config,
    tmp_path: Path,
) -> None:
    seed = pytestconfig.getoption("chaos_seed")
    minutes, only = pytestconfig.getoption("chaos_minutes"), pytestconfig.getoption("chaos_only")
    log = pytestconfig.getoption("chaos_log") or tmp_path / "chaos.log"
    reports: list[Report] = []

    def tell(line: str) -> None:
        print(line, flush=True)
        with open(log, "a") as file:
            file.write(f"{line}\n")

    try:
        for number in numbers(len(stages), minutes, only):
            stage = attacked(stages, number, seed)
            reports.append(attack(stage, reference(stage), number, seed, tmp_path / f"{number:04}"))
            tell(str(reports[-1]))
    finally:
        tell(summary(reports, seed))
    lost = [str(report) for report in reports if report.lost]
    assert not lost, "\n".join(lost)
