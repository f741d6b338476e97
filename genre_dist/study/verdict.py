"""The answer to the question, in words that claim no more than the figures."""

from collections.abc import Sequence
from typing import Any

from genre_dist.study.results import Model

LABELS = {
    "micro_f1_fitted": "micro F1",
    "macro_f1_fitted": "macro F1",
    "sample_f1_fitted": "sample F1",
    "accuracy_fitted": "accuracy",
    "micro_f1": "micro F1 at 0.5",
    "macro_f1": "macro F1 at 0.5",
    "sample_f1": "sample F1 at 0.5",
    "accuracy": "accuracy at 0.5",
    "mean_average_precision": "mAP",
    "auc": "AUC",
}
"""How measures are called; without a remark, at thresholds fitted on val."""
MAIN = ("micro_f1_fitted", "micro_f1", "macro_f1_fitted", "mean_average_precision")


def question_pair(models: Sequence[Model]) -> tuple[int, int] | None:
    """The models the headline compares: end to end against frozen, or the last against the first; None if alone.

    Of several end-to-end models the one that starts, like the frozen one, from trained encoders.
    """
    frozen = [number for number, model in enumerate(models) if model.kind == "frozen"]
    open_ones = [number for number, model in enumerate(models) if model.kind == "end to end"]
    if frozen and open_ones:
        warm = [number for number in open_ones if models[number].starts_warm]
        return (warm or open_ones)[0], frozen[0]
    return (len(models) - 1, 0) if len(models) > 1 else None


def headline(
    models: Sequence[Model],
    rows: Sequence[dict[str, Any]],
    differences: Sequence[dict[str, Any]],
    pair: tuple[int, int] | None,
) -> dict[str, Any]:
    """Question, answer, the difference it rests on, and what else is to be said beside it."""
    if pair is None:
        return {"question": f"How good is {models[0].name}?", "answer": "There is nothing to compare it with."}
    one, other = (models[number] for number in pair)
    asked = (one.kind, other.kind) == ("end to end", "frozen")
    found, measure = _between(differences, one.name, other.name)
    main = found["measures"][measure]
    verdict = _verdict(main)
    gain = f"{points(main['value'])} points of {LABELS[measure]} (95 % interval {points(main['low'])} to "
    gain += f"{points(main['high'])})"
    words = {"yes": "Yes", "no": "No", "open": "Not shown"}[verdict]
    against = "the same model with frozen encoders" if asked else other.name
    tail = {"yes": "", "no": "", "open": "; the interval includes zero"}[verdict]
    return {
        "question": "Was training end to end worth it?" if asked else f"Is {one.name} better than {other.name}?",
        "verdict": verdict,
        "word": words,
        "answer": f"{words}: {gain} against {against}, on {found['films']:,} films{tail}.",
        "one": one.name,
        "other": other.name,
        "measure": measure,
        "films": found["films"],
        **{name: main[name] for name in ("value", "low", "high", "p")},
        "beside": [
            *_disagreeing(found["measures"], measure, verdict),
            *_price(rows[pair[0]], rows[pair[1]]),
        ],
    }


def strongest_pair(models: Sequence[Model], differences: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The strongest trained model against the strongest baseline, both chosen by micro F1 on val."""
    best: list[Model] = []
    for wanted in (False, True):
        chosen = [model for model in models if (model.kind == "baseline") == wanted and model.val_micro_f1 is not None]
        if not chosen:
            return None
        best.append(max(chosen, key=lambda model: model.val_micro_f1 or 0))
    trained, baseline = best
    found, measure = _between(differences, trained.name, baseline.name)
    return {
        "model": trained.name,
        "baseline": baseline.name,
        "films": found["films"],
        "measure": measure,
        **found["measures"][measure],
    }


def points(value: float) -> str:
    """A difference of shares in points of a hundred, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _between(differences: Sequence[dict[str, Any]], one: str, other: str) -> tuple[dict[str, Any], str]:
    """One minus other, whichever way the pair is listed, and the measure to judge by."""
    for pair in differences:
        if (pair["one"], pair["other"]) == (one, other):
            found = pair
        elif (pair["one"], pair["other"]) == (other, one):
            turned = {measure: row and turned_round(row) for measure, row in pair["measures"].items()}
            found = {"one": one, "other": other, "films": pair["films"], "measures": turned}
    measure = "micro_f1_fitted" if found["measures"]["micro_f1_fitted"] is not None else "micro_f1"
    return found, measure


def turned_round(row: dict[str, Any]) -> dict[str, Any]:
    """The same difference seen from the other side."""
    return row | {"value": -row["value"], "low": -row["high"], "high": -row["low"]}


def _verdict(row: dict[str, Any]) -> str:
    return "yes" if row["low"] > 0 else "no" if row["high"] < 0 else "open"


def _disagreeing(measures: dict[str, Any], chosen: str, verdict: str) -> list[str]:
    """The other main measures whose verdict is another."""
    told = []
    for measure in MAIN:
        row = measures[measure]
        if measure != chosen and row is not None and _verdict(row) != verdict:
            how = {"yes": "it is ahead", "no": "it is behind", "open": "nothing is shown"}[_verdict(row)]
            told.append(
                f"By {LABELS[measure]} {how}: {points(row['value'])} ({points(row['low'])} to {points(row['high'])})."
            )
    return told or ["micro F1 at fitted thresholds and at 0.5, macro F1 and mAP agree."]


def _price(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """How much more training it took."""
    costs = [row["cost"] and (row["cost"]["device_hours"] or row["cost"]["hours"]) for row in (one, other)]
    if not all(costs):
        return []
    return [f"Training took {costs[0] / costs[1]:.1f} times the hours of {other['name']}."]
