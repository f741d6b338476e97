"""The verdict of a comparison, in words that claim no more than its figures."""

from collections.abc import Sequence
from typing import Any

from genre_dist.compare.questions import Pair, Question
from genre_dist.compare.results import Model
from genre_dist.compare.shown_measures import SHOWN, ShownMeasures
from genre_dist.metrics.bootstrap import holm
from genre_dist.pages.rendering import points
from genre_dist.schema import Schema

SURE = 0.05
"""The largest p, after Holm's correction, of a difference that is called shown."""


def answers(
    asked: Sequence[Question], differences: Sequence[dict[str, Any]], resamples: int, declared: Schema
) -> list[dict[str, Any]]:
    """The answers to questions as plain data: a row for each pair, and a sentence about the first pair.

    Holm's correction takes the pairs of all questions as one family.
    """
    of_questions = [[_row(pair, differences) for pair in question.pairs] for question in asked]
    rows = [row for own in of_questions for row in own]
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
        row["verdict"] = _outcome(row) if adjusted <= SURE else "open"
        row["word"] = {"yes": "Yes", "no": "No", "open": "Not shown"}[row["verdict"]]
    return [
        {"key": one.key, "question": one.text, "answer": sentence(own, resamples, declared), "rows": own}
        for one, own in zip(asked, of_questions, strict=True)
    ]


def _row(pair: Pair, differences: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The difference of a pair in the measure that decides."""
    one, other = pair.one, pair.other
    shown = SHOWN[one.declared.labels.choose]
    difference, measure = _oriented_difference(differences, one.name, other.name, shown)
    row = {"name": pair.name, "one": one.name, "other": other.name, "seeds": [len(one.results), len(other.results)]}
    return row | {"films": difference["films"], "measure": measure, **difference["measures"][measure]}


def sentence(rows: Sequence[dict[str, Any]], resamples: int, declared: Schema) -> str:
    """The answer of a question's rows: the first pair's, with what it rests on, and how many others agree."""
    row = rows[0]
    name = SHOWN[declared.labels.choose].names[row["measure"]]
    about = f" for {row['name']}" if row["name"] and row["name"] != row["one"] else ""
    words = (
        f"{row['word']}: {points(row['value'])} points of {name}{about} (95 % interval {between(row)}; "
        f"{chance(row, resamples)}), {row['one']} minus "
        f"{row['other']}, {basis(row, declared)}{reservation(row)}."
    )
    if len(rows) > 1:
        ahead, behind = (sum(other["verdict"] == verdict for other in rows) for verdict in ("yes", "no"))
        words += f" Of {len(rows)} pairs, {ahead} {'is' if ahead == 1 else 'are'} ahead and {behind} behind."
    return words


def basis(row: dict[str, Any], declared: Schema) -> str:
    """What an answer rests on: seeds and samples."""
    one, other = row["seeds"]
    seeds = f"{one if one > 1 else 'one'} seed{'s' * (one > 1)} each" if one == other else f"{one} and {other} seeds"
    return f"{seeds}, {row['films']:,} {declared.samples}"


def reservation(row: dict[str, Any]) -> str:
    """Why nothing is shown, after a semicolon."""
    if row["verdict"] != "open":
        return ""
    return "; the interval includes zero" if _outcome(row) == "open" else "; after Holm's correction p is above 0.05"


def headline(
    models: Sequence[Model],
    rows: Sequence[dict[str, Any]],
    differences: Sequence[dict[str, Any]],
    answered: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The first pair of the first question with its answer, and remarks on other measures and on cost."""
    if not answered:
        return {"question": f"How good is {models[0].name}?", "answer": "There is nothing to compare it with."}
    row, declared = answered[0]["rows"][0], models[0].declared
    shown = SHOWN[declared.labels.choose]
    difference, measure = _oriented_difference(differences, row["one"], row["other"], shown)
    costs = [next(model for model in rows if model["name"] == row[side]) for side in ("one", "other")]
    return {
        "question": answered[0]["question"],
        "answer": answered[0]["answer"],
        **row,
        "beside": [*_disagreeing(difference["measures"], measure, shown), *_price(costs[0], costs[1])],
    }


def strongest_pair(
    models: Sequence[Model], differences: Sequence[dict[str, Any]], on_shared: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """The strongest trained model against the strongest baseline, both chosen by micro F1 on val.

    That is the accuracy where a sample has exactly one label. With differences on fewer samples, that all models have,
    it has the difference there too.
    """
    best: list[Model] = []
    single = [model for model in models if model.derived is None and model.val_micro_f1 is not None]
    for wanted in (False, True):
        chosen = [model for model in single if (model.kind == "baseline") == wanted]
        if not chosen:
            return None
        best.append(max(chosen, key=lambda model: model.val_micro_f1 or 0))
    trained, baseline = best
    shown = SHOWN[trained.declared.labels.choose]
    difference, measure = _oriented_difference(differences, trained.name, baseline.name, shown)
    found = {
        "model": trained.name,
        "baseline": baseline.name,
        "films": difference["films"],
        "measure": measure,
        **difference["measures"][measure],
    }
    if on_shared:
        fewer, _ = _oriented_difference(on_shared, trained.name, baseline.name, shown)
        if fewer["films"] < difference["films"]:
            found["on_shared_films"] = {"films": fewer["films"], **fewer["measures"][measure]}
    return found


def p_value(p: float, resamples: int) -> str:
    """A p value, as exact as the resamples allow."""
    least = 2 / (resamples + 1)
    if p <= least * 1.001:
        return f"< {2 * least:.1g}"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def chance(row: dict[str, Any], resamples: int) -> str:
    """The p value of a question's row, and after Holm's correction if that differs."""
    adjusted = f", {p_value(row['p_holm'], resamples)} by Holm" if row["p_holm"] != row["p"] else ""
    return f"p {p_value(row['p'], resamples)}{adjusted}"


def between(row: dict[str, Any]) -> str:
    """The interval of a difference, in points."""
    return f"{points(row['low'])} to {points(row['high'])}"


def interval(row: dict[str, Any]) -> str:
    """A difference in points with its interval."""
    return f"{points(row['value'])} ({between(row)})"


def _oriented_difference(
    differences: Sequence[dict[str, Any]], one: str, other: str, shown: ShownMeasures
) -> tuple[dict[str, Any], str]:
    """The pair oriented as one minus other, and the measure that decides."""
    pair = next(pair for pair in differences if {pair["one"], pair["other"]} == {one, other})
    difference = pair if pair["one"] == one else reversed_pair(pair)
    return difference, next(measure for measure in shown.decides if difference["measures"][measure] is not None)


def reversed_pair(pair: dict[str, Any]) -> dict[str, Any]:
    """The pair with its models swapped and its differences negated."""
    measures = {
        measure: row and row | {"value": -row["value"], "low": -row["high"], "high": -row["low"]}
        for measure, row in pair["measures"].items()
    }
    turned = pair | {"one": pair["other"], "other": pair["one"], "measures": measures}
    return turned | ({"beyond": pair["beyond"][::-1]} if "beyond" in pair else {})


def _outcome(row: dict[str, Any]) -> str:
    return "yes" if row["low"] > 0 else "no" if row["high"] < 0 else "open"


def _disagreeing(measures: dict[str, Any], chosen: str, shown: ShownMeasures) -> list[str]:
    """A sentence for each main measure that disagrees with the chosen one."""
    how = {"yes": "it is ahead", "no": "it is behind", "open": "nothing is shown"}
    rows = [(measure, measures[measure]) for measure in shown.main if measures[measure] is not None]
    return [
        f"By {shown.names[measure]} {how[_outcome(row)]}: {interval(row)}."
        for measure, row in rows
        if _outcome(row) != _outcome(measures[chosen])
    ] or [shown.agree]


def _price(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The ratio of the two models' training hours, as a sentence: of hours times devices if those of both are known."""
    costs = [row["cost"] or {} for row in (one, other)]
    for hours in ("device_hours", "hours"):
        if all(cost.get(hours) for cost in costs):
            return [f"Training took {costs[0][hours] / costs[1][hours]:.1f} times the hours of {other['name']}."]
    return []
