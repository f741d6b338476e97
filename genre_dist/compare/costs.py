"""Training costs and learning curves of runs, read line by line from metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, NotRequired

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from genre_dist.compare.results import Result
from genre_dist.config.run import RECORD
from genre_dist.metrics.evaluation_files import Share
from genre_dist.training.metrics_log import lines_of
from genre_dist.validation import Count, parse_json

POINTS = 100  # of a curve; longer ones are thinned out
Amount = Annotated[float, Ge(0), Le(1e18)]


class CostRow(TypedDict):
    """The keys read from a line of metrics.jsonl; other keys are ignored."""

    kind: str
    step: Count
    loss: NotRequired[Amount | None]
    step_seconds: NotRequired[Amount]
    samples: NotRequired[Count | None]
    samples_per_second: NotRequired[Amount]
    ranks: NotRequired[Annotated[int, Ge(1), Le(10**9)]]
    device: NotRequired[str]
    memory_bytes: NotRequired[Amount | None]
    micro_f1: NotRequired[Share | None]
    mean_average_precision: NotRequired[Share | None]


class Cost(NamedTuple):
    """The cost of training without evaluations. None where metrics.jsonl lacks the figure."""

    hours: float
    """Of wall-clock time in training steps."""
    device_hours: float | None = None
    """The same times the number of GPUs or processes."""
    device: str | None = None
    """`cuda` or `cpu`."""
    ranks: int | None = None
    """The largest number of ranks in any step."""
    peak_memory_bytes: int | None = None
    """Of one rank: allocated on the GPU, or resident in the process."""
    samples_per_second: float | None = None
    """Median of the recorded steps, all ranks together."""
    steps: int | None = None
    samples: int | None = None
    """Training samples, with repetitions; None unless every step was recorded."""


class Curves(NamedTuple):
    """Learning curves: points [step, hours of training, value]."""

    train_loss: list[list[float]]
    val_loss: list[list[float]]
    val_micro_f1: list[list[float]]
    val_map: list[list[float]]


def read_cost(results: Sequence[Result]) -> tuple[Cost | None, Curves]:
    """A model's cost, a mean over its seeds (the highest peak of memory), and the curves of its first run."""
    records = [read_record(result.folder) for result in results]
    costs = [cost or _cost_of_baseline(result) for (cost, _), result in zip(records, results, strict=True)]
    known = [cost for cost in costs if cost is not None]
    if not known:
        return None, records[0][1]
    hours = [cost.device_hours for cost in known]
    peaks = [cost.peak_memory_bytes for cost in known if cost.peak_memory_bytes is not None]
    mean = known[0]._replace(
        hours=float(np.mean([cost.hours for cost in known])),
        device_hours=None if None in hours else float(np.mean([hour for hour in hours if hour is not None])),
        peak_memory_bytes=max(peaks, default=None),
    )
    return mean, records[0][1]


def _cost_of_baseline(result: Result) -> Cost | None:
    baseline = result.baseline
    if "fit_seconds" not in baseline:
        return None
    memory = baseline.get("peak_memory_gb")
    hours = baseline["fit_seconds"] / 3600
    peak = None if memory is None else int(memory * 2**30)
    return Cost(hours, hours, "cpu", 1, peak, samples=baseline.get("train_films"))


def read_record(run: Path) -> tuple[Cost | None, Curves]:
    """Cost and curves of a run; no cost and empty curves if metrics.jsonl has no training steps.

    Raises ValueError for a line that is no row of metrics.jsonl; only the last line may be cut short.
    """
    curves = Curves([], [], [], [])
    hours = device_hours = 0.0
    last_step = peak = samples = 0
    ranks: int | None = None
    device, complete, rates, losses = None, True, _Thinned(), _Thinned()
    path = run / RECORD
    for number, (line, _) in enumerate(lines_of(path), 1):
        row = parse_json(CostRow, line, f"{path}, line {number}", "remove the line")
        step = row["step"]
        if row["kind"] == "train" and "step_seconds" in row:
            if step <= last_step:
                raise ValueError(f"{path}: step {step} comes after step {last_step}; mend the file")
            passed = step - last_step  # with train.log_every_steps, a row stands for several steps
            complete &= passed == 1
            ranks = max(ranks or 0, row["ranks"]) if "ranks" in row else ranks
            hours += passed * row["step_seconds"] / 3600
            device_hours += passed * row["step_seconds"] / 3600 * row.get("ranks", 1)
            device, peak = row.get("device", device), max(peak, int(row.get("memory_bytes") or 0))
            samples, last_step = samples + int(row.get("samples") or 0), step
            if (loss := row.get("loss")) is not None:
                losses.add([step, hours, loss])
            if "samples_per_second" in row:
                rates.add([row["samples_per_second"]])
        elif row["kind"] == "val":
            for value, points in (
                (row.get("loss"), curves.val_loss),
                (row.get("micro_f1"), curves.val_micro_f1),
                (row.get("mean_average_precision"), curves.val_map),
            ):
                if value is not None:
                    points.append([step, hours, value])
    if not last_step:
        return None, curves
    speed = float(np.median(rates.points)) if rates.points else None
    cost = Cost(
        hours=hours,
        device_hours=device_hours if ranks else None,
        device=device,
        ranks=ranks,
        peak_memory_bytes=peak or None,
        samples_per_second=speed,
        steps=last_step,
        samples=samples if complete else None,
    )
    return cost, curves._replace(train_loss=_smooth(losses.points))


class _Thinned:
    """Evenly spaced points of a series of any length, at most twice POINTS."""

    def __init__(self) -> None:
        self.points: list[list[float]] = []
        self._every, self._seen = 1, 0

    def add(self, point: list[float]) -> None:
        if self._seen % self._every == 0:
            self.points.append(point)
            if len(self.points) == 2 * POINTS:
                self.points, self._every = self.points[::2], 2 * self._every
        self._seen += 1


def _smooth(points: list[list[float]]) -> list[list[float]]:
    """A running mean over a thirtieth of the points: single steps are noisy."""
    width = max(1, len(points) // 30)
    return [
        [step, hours, float(np.mean([value for _, _, value in points[max(0, at - width + 1) : at + 1]]))]
        for at, (step, hours, _) in enumerate(points)
    ]
