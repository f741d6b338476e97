"""Training costs and learning curves of runs, read line by line from metrics.jsonl."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from genre_dist.compare.results import Result
from genre_dist.config import Config
from genre_dist.config.files import load_config
from genre_dist.config.run import CONFIG, RECORD
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
    hours_with_encoders: float | None = None
    """Hours with those of the runs that the encoders started from; None if one of these left no record."""


class Curves(NamedTuple):
    """Learning curves: points [step, hours of training, value]."""

    train_loss: list[list[float]]
    val_loss: list[list[float]]
    val_micro_f1: list[list[float]]
    val_map: list[list[float]]


def read_cost(results: Sequence[Result]) -> tuple[Cost | None, Curves]:
    """A model's cost, a mean over its seeds (the highest peak of memory), and the curves of its first run."""
    records = [read_record(result.folder) for result in results]
    costs = [_with_encoders(cost, result) for (cost, _), result in zip(records, results, strict=True)]
    known = [cost for cost in costs if cost is not None]
    if not known:
        return None, records[0][1]
    peaks = [cost.peak_memory_bytes for cost in known if cost.peak_memory_bytes is not None]
    mean = known[0]._replace(
        hours=float(np.mean([cost.hours for cost in known])),
        device_hours=_mean([cost.device_hours for cost in known]),
        hours_with_encoders=_mean([cost.hours_with_encoders for cost in known]),
        peak_memory_bytes=max(peaks, default=None),
    )
    return mean, records[0][1]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if one is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _with_encoders(cost: Cost | None, result: Result) -> Cost | None:
    """A run's cost with the hours of the runs before it; a late fusion or an ensemble costs what its runs did."""
    if result.derived is not None:
        hours = None if result.derived["kind"] == "hidden" else _hours_of(map(Path, result.derived["of"]))
        return None if hours is None else Cost(hours, hours_with_encoders=hours)
    if cost is None:
        baseline = _cost_of_baseline(result)
        return baseline and baseline._replace(hours_with_encoders=baseline.hours)
    before = _hours_of(_before(result.config)) if result.config else 0.0
    return cost._replace(hours_with_encoders=None if before is None else cost.hours + before)


def _hours_of(runs: Iterable[Path]) -> float | None:
    """The hours of some runs and of those that their encoders started from; None if one of them left no record."""
    waiting, hours = list(runs), dict[Path, float]()
    while waiting:
        run = waiting.pop().resolve()
        if run in hours:
            continue
        cost, _ = read_record(run)
        if cost is None:
            return None
        hours[run] = cost.hours
        if (run / CONFIG).is_file():
            waiting += _before(load_config(run / CONFIG))
    return sum(hours.values())


def _before(config: Config) -> list[Path]:
    """The folders of the runs that a run's encoders started from. Weights of no run are left out."""
    model = config.model
    files = [Path(weights) for weights in (model.text.weights_file, model.poster.weights) if weights]
    return [file.parent for file in files if file.suffix == ".safetensors" and not _is_of_no_run(file)]


def _is_of_no_run(file: Path) -> bool:
    return file.is_file() and not (file.parent / RECORD).is_file()


def hours(value: float) -> str:
    """Hours, minutes or seconds, whichever reads well."""
    if value >= 1:
        return f"{value:.1f} h"
    return f"{60 * value:.1f} min" if value >= 1 / 60 else f"{3600 * value:.1f} s"


def hours_with_encoders(cost: dict[str, Any]) -> str:
    """The hours with those of the runs before; if these are not known, what they are more than."""
    total = cost["hours_with_encoders"]
    return f"> {hours(cost['hours'])}" if total is None else hours(total)


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
