"""What each model costs, against how good it is."""

from collections.abc import Sequence
from typing import Any

from genre_dist.compare.costs import hours
from genre_dist.compare.questions import strength
from genre_dist.compare.results import Model
from genre_dist.compare.shown_measures import SHOWN


def cost_question(models: Sequence[Model], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The question as plain data, a row for each model whose hours are known; none for fewer than two such models.

    Hours are those of training, with the runs that the encoders started from; `at_least` where these are not known.
    """
    declared = models[0].declared
    shown = SHOWN[declared.labels.choose]
    known = [(model, row) for model, row in zip(models, rows, strict=True) if row["cost"] is not None]
    measures = [measure for measure in shown.decides if all(row["on_shared_films"][measure] for _, row in known)]
    if len(known) < 2 or not measures:
        return []
    priced = [_priced(row, measures[0]) for _, row in known]
    cheapest = min(priced, key=lambda row: float(row["hours"]))
    best = priced[max(range(len(known)), key=lambda number: strength(known[number][0]))]
    answer = f"{best['model']}, the strongest on val, took {_amount(best)} of training, its encoders' included"
    if best is not cheapest:
        lost = best["value"] - cheapest["value"]
        answer += (
            f"; {cheapest['model']}, the cheapest, took {_amount(cheapest)} and has {100 * abs(lost):.1f} points of "
            f"{shown.names[measures[0]]} {'less' if lost >= 0 else 'more'}"
        )
    answer += "."
    return [{"key": "cost", "question": "What does each cost?", "answer": answer, "rows": priced}]


def _priced(row: dict[str, Any], measure: str) -> dict[str, Any]:
    cost, figure = row["cost"], row["on_shared_films"][measure]
    total = cost["hours_with_encoders"]
    return {
        "model": row["name"],
        "hours": cost["hours"] if total is None else total,
        "at_least": total is None,
        "peak_memory_bytes": cost["peak_memory_bytes"],
        "seeds": len(figure["seeds"]),
        "measure": measure,
        **{name: figure[name] for name in ("value", "low", "high")},
    }


def _amount(row: dict[str, Any]) -> str:
    return f"{'at least ' * row['at_least']}{hours(row['hours'])}"
