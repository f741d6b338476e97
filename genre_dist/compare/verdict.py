"""The verdict of a comparison, in words that claim no more than its figures."""

from collections.abc import Sequence
from typing import Any

from genre_dist.compare.results import Model
from genre_dist.compare.shown_measures import SHOWN, ShownMeasures
from genre_dist.pages.rendering import points


def question_pair(models: Sequence[Model]) -> tuple[int, int] | None:
    """The models that the verdict compares: end to end against frozen, or the last against the first; None if alone.

    Among several end-to-end models, one that starts from trained encoders, as the frozen model does, comes first.
    """
    frozen = [number for number, model in enumerate(models) if model.kind == "frozen"]
    open_ones = [number for number, model in enumerate(models) if model.kind == "end to end"]
    if frozen and open_ones:
        warm = [number for number in open_ones if models[number].starts_warm]
        return (warm or open_ones)[0], frozen[0]
    return (len(models) - 1, 0) if len(models) > 1 else None


def verdict(
    models: Sequence[Model],
    rows: Sequence[dict[str, Any]],
    differences: Sequence[dict[str, Any]],
    pair: tuple[int, int] | None,
) -> dict[str, Any]:
    """The question, its answer, the difference that decides it, and remarks on other measures and on cost."""
    if pair is None:
        return {"question": f"How good is {models[0].name}?", "answer": "There is nothing to compare it with."}
    one, other = (models[number] for number in pair)
    declared = models[0].declared
    shown = SHOWN[declared.labels.choose]
    asked = (one.kind, other.kind) == ("end to end", "frozen")
    difference, measure = _oriented_difference(differences, one.name, other.name, shown)
    main = difference["measures"][measure]
    outcome = _outcome(main)
    word = {"yes": "Yes", "no": "No", "open": "Not shown"}[outcome]
    gain = f"{points(main['value'])} points of {shown.names[measure]} (95 % interval {between(main)})"
    against = "the same model with frozen encoders" if asked else other.name
    tail = "; the interval includes zero" if outcome == "open" else ""
    return {
        "question": "Was training end to end worth it?" if asked else f"Is {one.name} better than {other.name}?",
        "verdict": outcome,
        "word": word,
        "answer": f"{word}: {gain} against {against}, on {difference['films']:,} {declared.samples}{tail}.",
        "one": one.name,
        "other": other.name,
        "measure": measure,
        "films": difference["films"],
        **{name: main[name] for name in ("value", "low", "high", "p")},
        "beside": [*_disagreeing(difference["measures"], measure, shown), *_price(rows[pair[0]], rows[pair[1]])],
    }


def strongest_pair(models: Sequence[Model], differences: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The strongest trained model against the strongest baseline, both chosen by micro F1 on val.

    That is the accuracy where a sample has exactly one label.
    """
    best: list[Model] = []
    for wanted in (False, True):
        chosen = [model for model in models if (model.kind == "baseline") == wanted and model.val_micro_f1 is not None]
        if not chosen:
            return None
        best.append(max(chosen, key=lambda model: model.val_micro_f1 or 0))
    trained, baseline = best
    shown = SHOWN[trained.declared.labels.choose]
    difference, measure = _oriented_difference(differences, trained.name, baseline.name, shown)
    return {
        "model": trained.name,
        "baseline": baseline.name,
        "films": difference["films"],
        "measure": measure,
        **difference["measures"][measure],
    }


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
    """The ratio of the two models' training hours, as a sentence."""
    costs = [row["cost"] and (row["cost"]["device_hours"] or row["cost"]["hours"]) for row in (one, other)]
    if not all(costs):
        return []
    return [f"Training took {costs[0] / costs[1]:.1f} times the hours of {other['name']}."]
