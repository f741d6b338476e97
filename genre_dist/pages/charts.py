"""Positions of marks in a chart, in per cent of its width and height; the templates draw them. Pure."""

import math
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round numbers between low and high, with steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-9)
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def forest(rows: Sequence[Row], zero: bool, label: Callable[[float], str]) -> Row:
    """A forest plot: each row gets the positions `at`, `from` and `to`; with `zero`, the axis includes zero.

    Rows have `value`, and `low` and `high` where there is an interval.
    """
    ends = [float(row[name]) for row in rows for name in ("low", "high", "value") if name in row] + [0.0] * zero
    low, high = min(ends), max(ends)
    margin = 0.04 * max(high - low, 0.01)
    low, high = low - margin, high + margin

    def percent(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    drawn = [
        row
        | {
            "at": percent(row["value"]),
            "from": percent(row["low"] if "low" in row else row["value"]),
            "to": percent(row["high"] if "high" in row else row["value"]),
        }
        for row in rows
    ]
    return {
        "rows": drawn,
        "zero": percent(0.0) if zero else None,
        "ticks": [{"at": percent(value), "text": label(value)} for value in ticks(low, high, 4)],
    }


TIMES = (
    *((seconds / 3600, f"{seconds} s") for seconds in (1, 3, 10, 30)),
    *((minutes / 60, f"{minutes} min") for minutes in (1, 3, 10, 30)),
    *((float(hours), f"{hours:,} h") for hours in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)),
)
"""Hours at which a logarithmic axis of times has a mark."""
LETTER, LINE = 1.8, 5.5
"""Width and height of a label's letter, in per cent of the figure on a phone."""


def scatter(rows: Sequence[Row], label: Callable[[float], str]) -> Row:
    """Dots of `hours` (logarithmic, across) and `value` (up, with `low` and `high`), each labelled with its `name`.

    Each row gets the positions `x`, `y`, `top`, `bottom` and those of its label, beside its dot and off other labels.
    """
    least = min(max(row["hours"], 1e-6) for row in rows)
    left, right = math.log(least / 1.6), math.log(max(least, *(row["hours"] for row in rows)) * 1.6)
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    margin = 0.06 * max(high - low, 0.01)
    low, high = low - margin, high + margin

    def across(hours: float) -> float:
        return round(100 * (math.log(max(hours, least)) - left) / (right - left), 2)

    def down(value: float) -> float:
        return round(100 * (high - value) / (high - low), 2)

    drawn = [
        row | {"x": across(row["hours"]), "y": down(row["value"]), "top": down(row["high"]), "bottom": down(row["low"])}
        for row in rows
    ]
    times = [time for time in TIMES if left < math.log(time[0]) < right]
    times = times[:: max(1, math.ceil(len(times) / 6))]
    return {
        "rows": _labelled(drawn),
        "x": [{"at": across(hours), "text": text} for hours, text in times],
        "y": [{"at": down(value), "text": label(value)} for value in ticks(low, high, 4)],
    }


def _labelled(rows: list[Row]) -> list[Row]:
    """The rows with `anchor`, the end of its label at a dot, and `shift`, by how much it is lower, in per cent.

    A label is moved up or down until it covers no other label and no dot.
    """
    dots = [(row["x"] - 1.5, row["x"] + 1.5, row["y"]) for row in rows]
    labels: list[tuple[float, float, float]] = []  # left, right, height
    for row in sorted(rows, key=lambda row: row["y"]):
        width, is_left = LETTER * len(row["name"]) + 2, row["x"] > 55
        left, right = (row["x"] - 2 - width, row["x"] - 2) if is_left else (row["x"] + 2, row["x"] + 2 + width)
        shifts = [sign * LINE * step / 4 for step in range(80) for sign in (1, -1)]
        free = (
            shift
            for shift in shifts
            if 2 <= row["y"] + shift <= 98
            and all(
                left >= end or right <= start or abs(row["y"] + shift - at) >= LINE
                for start, end, at in [*labels, *dots]
            )
        )
        shift = next(free, 0.0)
        labels.append((left, right, row["y"] + shift))
        row |= {"shift": round(shift, 2), "anchor": "end" if is_left else "start"}
    return rows


def lines(series: Sequence[Row], column: int, label: Callable[[float], str]) -> Row | None:
    """Curves over steps (column 0) or hours (column 1). A series has `name`, `style` and `points` [step, hours, value].

    Each series gets `path`, its points in a square of 1000. None if no series has two points.
    """
    series = [one for one in series if len(one["points"]) > 1]
    if not series:
        return None
    xs = [point[column] for one in series for point in one["points"]]
    ys = [point[2] for one in series for point in one["points"]]
    right, low, high = max(xs) or 1.0, min(ys), max(ys)
    margin = 0.05 * max(high - low, 1e-3)
    low, high = low - margin, high + margin

    def across(value: float) -> float:
        return round(1000 * value / right, 1)

    def down(value: float) -> float:
        return round(1000 * (high - value) / (high - low), 1)

    return {
        "series": [
            one
            | {
                "path": " ".join(f"{across(point[column])},{down(point[2])}" for point in one["points"]),
                "data": [
                    [across(point[column]), down(point[2]), round(point[column], 4), round(point[2], 4)]
                    for point in one["points"]
                ],
            }
            for one in series
        ],
        "x": [{"at": across(value) / 10, "text": label(value)} for value in ticks(0, right, 4)],
        "y": [{"at": down(value) / 10, "text": f"{value:g}"} for value in ticks(low, high, 4)],
    }


def reliability(curve: Sequence[Row]) -> list[Row]:
    """Points of a reliability curve in a square of 100; the radius grows with the number of pairs."""
    most = max((point["pairs"] for point in curve), default=1)
    return [
        point
        | {
            "x": round(100 * point["predicted"], 2),
            "y": round(100 - 100 * point["true"], 2),
            "r": round(1.6 + 2.4 * math.log1p(point["pairs"]) / math.log1p(most), 2),
        }
        for point in curve
    ]


def steps(ys: Sequence[float], xs: Sequence[float]) -> str:
    """A line from 0 through points of shares, in a square of 100: each value holds from the point before to its own."""
    starts = [0.0, *xs[:-1]]
    pairs = [(x, y) for start, end, y in zip(starts, xs, ys, strict=True) for x, y in ((start, y), (end, y))]
    return " ".join(f"{round(100 * x, 1):g},{round(100 - 100 * y, 1):g}" for x, y in pairs)
