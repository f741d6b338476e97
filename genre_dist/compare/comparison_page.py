"""The comparison as an HTML page."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from genre_dist.compare import comparison_tables as tables
from genre_dist.compare.costs import hours
from genre_dist.compare.label_figures import RECALLS
from genre_dist.compare.reference_2018 import NOTE
from genre_dist.compare.shown_measures import SHOWN, ShownMeasures
from genre_dist.compare.verdict import basis, between, chance, p_value, reservation, reversed_pair
from genre_dist.pages import charts
from genre_dist.pages.rendering import points, write_page
from genre_dist.schema import Schema, plural

ROWS = {
    "end_to_end": "Each model with trained encoders minus the one with frozen encoders of the same architectures",
    "joint": "The strongest model of texts and images on val minus the strongest late fusion on val",
    "pretrained": "The strongest model with a pretrained text encoder on val minus the strongest with a recurrent one",
}
"""What the rows of a question's figure are."""
FIELD_ROWS = "Each model minus the same model with the field hidden"
CURVES = {"train_loss": "Training loss", "val_micro_f1": "Val micro F1 at 0.5", "val_map": "Val mAP"}


def write_report(path: Path, comparison: dict[str, Any], posters: Mapping[int, bytes], declared: Schema) -> None:
    """Write a comparison as an HTML page; `posters` are small JPEGs by the sample's number in the index."""
    shown = SHOWN[declared.labels.choose]
    write_page(
        path,
        "comparison.html",
        comparison=comparison,
        posters=posters,
        has_texts=any(film.get("texts") for side in ("wins", "losses") for film in comparison["films"].get(side, [])),
        declared=declared,
        plural=plural(declared.label),
        labels=shown.names,
        kinds=_kinds(declared),
        models=_models(comparison),
        genres=_genres(comparison, shown.of_label),
        measures=shown.columns,
        questions=_questions(comparison, declared),
        basis=partial(basis, declared=declared),
        reservation=reservation,
        answer=_answer(comparison, shown),
        standings=_standings(comparison, shown.forests),
        pairs=_pairs(comparison, shown.forests),
        beyond=tables.beyond,
        p_value=partial(p_value, resamples=comparison["resamples"]),
        chance=partial(chance, resamples=comparison["resamples"]),
        curves=_curves(comparison, declared),
        reliability=charts.reliability,
        steps=partial(charts.steps, xs=RECALLS.tolist()),
        cost_columns=tables.COST_COLUMNS,
        cost_cells=tables.cost_cells,
        strongest=tables.strongest_words(comparison["strongest"], declared) if comparison["strongest"] else None,
    )


def _questions(comparison: dict[str, Any], declared: Schema) -> list[dict[str, Any]]:
    """The questions with what their rows are, and a forest plot of these."""
    names = SHOWN[declared.labels.choose].names
    asked = []
    for question in comparison["questions"]:
        rows = []
        if question["key"] == "cost":
            asked.append(question | {"chart": _costs(comparison, question["rows"], names)})
            continue
        for row in question["rows"]:
            pair = f"{row['one']} \N{MINUS SIGN} {row['other']}"
            name = f"{row['name']}: {pair}" if row["name"] not in ("", row["one"]) else pair
            drawn = _difference_row(row, f"{pair}, {names[row['measure']]}")
            drawn["tip"] += f"\n{chance(row, comparison['resamples'])}\n{basis(row, declared)}"
            rows.append(drawn | {"name": name, "sure": row["verdict"] != "open"})
        what = ROWS.get(question["key"], FIELD_ROWS)
        asked.append(question | {"rows_are": what, "chart": charts.forest(rows, zero=True, label=_tick)})
    return asked


def _costs(comparison: dict[str, Any], rows: Sequence[dict[str, Any]], names: Mapping[str, str]) -> dict[str, Any]:
    """A scatter plot of the models: their measure over their hours."""
    styles = {row["name"]: row["style"] for row in _models(comparison)}
    drawn = []
    for row in rows:
        figures = f"{names[row['measure']]} {row['value']:.3f}\n95 % interval {row['low']:.3f} to {row['high']:.3f}"
        tip = f"{row['model']}: {'at least ' * row['at_least']}{hours(row['hours'])}\n{figures}"
        if row["peak_memory_bytes"] is not None:
            tip += f"\npeak memory {row['peak_memory_bytes'] / 2**30:.1f} GiB"
        drawn.append(row | {"name": row["model"], "style": styles[row["model"]], "tip": tip})
    return charts.scatter(drawn, label=lambda value: f"{value:g}")


def _kinds(declared: Schema) -> dict[str, str]:
    """What the kinds of models are called."""
    return {
        "end to end": "nothing frozen",
        "frozen": "encoders frozen",
        "partly frozen": "partly frozen",
        "text": f"{declared.first('text')} only",
        "poster": f"{declared.first('image')} only",
        "baseline": "baseline",
        "hidden": "fields hidden",
        "late fusion": "late fusion",
        "ensemble": "ensemble",
    }


def _models(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """The models with their line styles: the two models of the verdict stand out."""
    verdict = comparison["headline"]
    styles = {verdict.get("one"): "one", verdict.get("other"): "other"}
    return [row | {"style": styles.get(row["name"], "rest")} for row in comparison["models"]]


def _genres(comparison: dict[str, Any], measure: str) -> list[dict[str, Any]]:
    """Each label with every model's F1 and its interval, and the best F1."""
    rows = []
    for genre in comparison["genres"]:
        figures = [row["per_genre"][genre] for row in comparison["models"]]
        f1 = [row[measure] for row in figures]
        bounds = [(row[f"{measure}_low"], row[f"{measure}_high"]) for row in figures]
        best = max((value for value in f1 if value is not None), default=None)
        rows.append(
            {"name": genre, "films": max(row["films"] for row in figures), "f1": f1, "bounds": bounds, "best": best}
        )
    return rows


def _answer(comparison: dict[str, Any], shown: ShownMeasures) -> dict[str, Any] | None:
    """The forest plot of the verdict's pair: its difference in every measure."""
    verdict = comparison["headline"]
    for pair in comparison["differences"]:
        if {pair["one"], pair["other"]} == {verdict["one"], verdict["other"]}:
            oriented = pair if pair["one"] == verdict["one"] else reversed_pair(pair)
            rows = [
                _difference_row(difference, shown.names[measure]) | {"main": measure == verdict["measure"]}
                for measure in shown.answer
                if (difference := oriented["measures"][measure]) is not None
            ]
            return charts.forest(rows, zero=True, label=_tick)
    return None


def _standing_row(row: dict[str, Any], measure: str) -> dict[str, Any]:
    figure = row["on_shared_films"][measure]
    words = f"{row['name']}: {figure['value']:.3f}\n95 % interval {figure['low']:.3f} to {figure['high']:.3f}"
    if figure["sd"] is not None:
        words += f"\n{len(figure['seeds'])} seeds: {', '.join(f'{value:.3f}' for value in figure['seeds'])}"
    return figure | {"name": row["name"], "style": row["style"], "text": f"{figure['value']:.3f}", "tip": words}


def _difference_row(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A forest-plot row of a difference: its figures, label and tooltip."""
    text = Markup("<b>{}</b> {}").format(points(row["value"]), between(row))
    tip = f"{name}: {points(row['value'])} points\n95 % interval {between(row)}"
    return row | {"name": name, "text": text, "tip": tip}


def _tick(value: float) -> str:
    return f"{100 * value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _standings(comparison: dict[str, Any], measures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A forest plot per measure: every model on the films all share, best first; at 0.5 also the 2018 study's."""
    forests = {}
    for measure in measures:
        models = (row for row in _models(comparison) if row["on_shared_films"][measure] is not None)
        rows = [_standing_row(row, measure) for row in models]
        if not rows:
            continue
        if measure == "micro_f1" and comparison["study_2018"]:
            rows += [
                {
                    "name": f"2018: {row['model']}",
                    "value": row["micro_f1"],
                    "text": f"{row['micro_f1']:.3f}",
                    "tip": f"{row['model']}: {row['micro_f1']:.3f}\n{NOTE}",
                    "reference": True,
                }
                for row in comparison["study_2018"]["test"]
            ]
        rows.sort(key=lambda row: -row["value"])
        forests[measure] = charts.forest(rows, zero=False, label=lambda value: f"{value:g}")
    return forests


def _pairs(comparison: dict[str, Any], measures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A forest plot per measure: every pair of models, the better minus the worse, the largest difference first."""
    forests = {}
    for measure in measures:
        rows = []
        for pair in comparison["differences"]:
            if (row := pair["measures"][measure]) is not None:
                oriented = pair if row["value"] >= 0 else reversed_pair(pair)
                names = {name: oriented[name] for name in ("one", "other", "films", "beyond") if name in oriented}
                row = oriented["measures"][measure]
                row = _difference_row(row, f"{oriented['one']} over {oriented['other']}") | names
                rows.append(row | {"sure": row["low"] > 0})
        if rows:
            rows.sort(key=lambda row: -row["value"])
            forests[measure] = charts.forest(rows, zero=True, label=_tick)
    return forests


def _curves(comparison: dict[str, Any], declared: Schema) -> list[dict[str, Any]]:
    """The learning curves, over steps and over hours."""
    panels, models = [], _models(comparison)
    titles = CURVES if declared.labels.choose == "many" else CURVES | {"val_micro_f1": "Val accuracy"}
    for name, title in titles.items():
        series = [{"name": row["name"], "style": row["style"], "points": row["curves"][name]} for row in models]
        axes: dict[str, tuple[int, Callable[[float], str]]] = {
            "steps": (0, lambda value: f"{value:,.0f}"),
            "time": (1, lambda value: hours(value) if value else "0"),
        }
        drawn = {axis: charts.lines(series, column, label) for axis, (column, label) in axes.items()}
        if drawn["steps"] is not None:
            panels.append({"name": name, "title": title, "axes": drawn})
    return panels
