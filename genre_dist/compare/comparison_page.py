"""The comparison as a page."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from genre_dist.compare import comparison_tables as tables
from genre_dist.compare.reference_2018 import NOTE
from genre_dist.compare.verdict import LABELS, between, turned_round
from genre_dist.pages import charts
from genre_dist.pages.rendering import points, write_page

CURVES = {"train_loss": "Training loss", "val_micro_f1": "Val micro F1 at 0.5", "val_map": "Val mAP"}
KINDS = {
    "end to end": "nothing frozen",
    "frozen": "encoders frozen",
    "partly frozen": "partly frozen",
    "text": "overview only",
    "poster": "poster only",
    "baseline": "baseline",
}
FORESTS = ("micro_f1_fitted", "micro_f1", "macro_f1_fitted", "sample_f1_fitted", "mean_average_precision", "auc")


def write_report(path: Path, told: dict[str, Any], posters: Mapping[int, bytes]) -> None:
    """Write a comparison as a page; `posters` are small JPEGs by film id."""
    write_page(
        path,
        "comparison.html",
        told=told,
        posters=posters,
        labels=LABELS,
        kinds=KINDS,
        models=_models(told),
        genres=_genres(told),
        shown=tables.SHOWN,
        answer=_answer(told),
        standings=_standings(told),
        pairs=_pairs(told),
        p_value=partial(tables.p_value, resamples=told["resamples"]),
        curves=_curves(told),
        reliability=charts.reliability,
        cost_columns=tables.COST_COLUMNS,
        cost_cells=tables.cost_cells,
        strongest=tables.strongest_words(told["strongest"]) if told["strongest"] else None,
    )


def _models(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The models with how their lines are drawn: the two of the headline stand out."""
    head = told["headline"]
    styles = {head.get("one"): "one", head.get("other"): "other"}
    return [row | {"style": styles.get(row["name"], "rest")} for row in told["models"]]


def _genres(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Each genre with the F1 of every model at fitted thresholds, and the best of them."""
    rows = []
    for genre in told["genres"]:
        found = [row["per_genre"][genre] for row in told["models"]]
        f1 = [one["f1_fitted"] for one in found]
        best = max((value for value in f1 if value is not None), default=None)
        rows.append({"name": genre, "films": max(one["films"] for one in found), "f1": f1, "best": best})
    return rows


def _answer(told: dict[str, Any]) -> dict[str, Any] | None:
    """The headline's pair in every measure, in points."""
    head = told["headline"]
    for pair in told["differences"]:
        if {pair["one"], pair["other"]} == {head["one"], head["other"]}:
            seen = pair if pair["one"] == head["one"] else turned_round(pair)
            rows = [
                _told(found, LABELS[measure]) | {"main": measure == head["measure"]}
                for measure, found in seen["measures"].items()
                if found is not None and not measure.startswith("accuracy")
            ]
            return charts.forest(rows, zero=True, label=_tick)
    return None


def _standing(row: dict[str, Any], measure: str) -> dict[str, Any]:
    figure = row["on_shared_films"][measure]
    words = f"{row['name']}: {figure['value']:.3f}\n95 % interval {figure['low']:.3f} to {figure['high']:.3f}"
    if figure["sd"] is not None:
        words += f"\n{len(figure['seeds'])} seeds: {', '.join(f'{value:.3f}' for value in figure['seeds'])}"
    return figure | {"name": row["name"], "style": row["style"], "text": f"{figure['value']:.3f}", "tip": words}


def _told(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A difference with the words beside it."""
    text = Markup("<b>{}</b> {}").format(points(row["value"]), between(row))
    tip = f"{name}: {points(row['value'])} points\n95 % interval {between(row)}"
    return row | {"name": name, "text": text, "tip": tip}


def _tick(value: float) -> str:
    return f"{100 * value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _standings(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per measure every model's figure with its interval on the films all share, best first; at 0.5 the study's too."""
    found = {}
    for measure in FORESTS:
        rows = [_standing(row, measure) for row in _models(told) if row["on_shared_films"][measure] is not None]
        if not rows:
            continue
        if measure == "micro_f1":
            rows += [
                {
                    "name": f"2018: {row['model']}",
                    "value": row["micro_f1"],
                    "text": f"{row['micro_f1']:.3f}",
                    "tip": f"{row['model']}: {row['micro_f1']:.3f}\n{NOTE}",
                    "theirs": True,
                }
                for row in told["study_2018"]["test"]
            ]
        rows.sort(key=lambda row: -row["value"])
        found[measure] = charts.forest(rows, zero=False, label=lambda value: f"{value:g}")
    return found


def _pairs(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per measure every pair of models, the larger above the smaller, the largest difference first."""
    found = {}
    for measure in FORESTS:
        rows = []
        for pair in told["differences"]:
            if (row := pair["measures"][measure]) is not None:
                seen = pair if row["value"] >= 0 else turned_round(pair)
                row, names = seen["measures"][measure], {name: seen[name] for name in ("one", "other", "films")}
                rows.append(_told(row, f"{seen['one']} over {seen['other']}") | {"sure": row["low"] > 0} | names)
        if rows:
            rows.sort(key=lambda row: -row["value"])
            found[measure] = charts.forest(rows, zero=True, label=_tick)
    return found


def _curves(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Each curve of learning, over steps and over time."""
    found = []
    for name, title in CURVES.items():
        series = [{"name": row["name"], "style": row["style"], "points": row["curves"][name]} for row in _models(told)]
        axes: dict[str, tuple[int, Callable[[float], str]]] = {
            "steps": (0, lambda value: f"{value:,.0f}"),
            "time": (1, lambda value: tables.hours(value) if value else "0"),
        }
        drawn = {axis: charts.lines(series, column, label) for axis, (column, label) in axes.items()}
        if drawn["steps"] is not None:
            found.append({"name": name, "title": title, "axes": drawn})
    return found
