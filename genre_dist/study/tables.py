"""A comparison as tables: for the terminal, and as Markdown."""

from collections.abc import Sequence
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from genre_dist.printable import markdown as escaped
from genre_dist.printable import printable, terminal
from genre_dist.study.verdict import LABELS, MAIN, points

SHOWN = (
    "micro_f1_fitted",
    "macro_f1_fitted",
    "sample_f1_fitted",
    "micro_f1",
    "macro_f1",
    "accuracy",
    "mean_average_precision",
    "auc",
)
COST_COLUMNS = ("hours", "device hours", "peak memory", "samples/s", "steps")


def share(figure: dict[str, Any] | None) -> str:
    """A figure between 0 and 1, with the spread of its seeds if there are several."""
    if figure is None:
        return "-"
    spread = f" ± {figure['sd']:.3f}" if figure["sd"] is not None else ""
    return f"{figure['value']:.3f}{spread}"


def interval(row: dict[str, Any]) -> str:
    """A difference in points with its interval."""
    return f"{points(row['value'])} ({points(row['low'])} to {points(row['high'])})"


def p_value(p: float, resamples: int) -> str:
    """A p value, as exact as the resamples allow."""
    least = 2 / (resamples + 1)
    return f"< {2 * least:.1g}" if p <= least * 1.001 else f"{p:.3f}"


def cost_cells(cost: dict[str, Any] | None) -> tuple[str, ...]:
    """Hours, device hours, peak memory, speed and steps."""
    if cost is None:
        return ("-",) * len(COST_COLUMNS)
    devices = "-" if cost["device_hours"] is None else f"{hours(cost['device_hours'])} {device_word(cost)}"
    memory = cost["peak_memory_bytes"]
    return (
        hours(cost["hours"]),
        devices,
        "-" if memory is None else f"{memory / 2**30:.1f} GiB",
        "-" if cost["samples_per_second"] is None else f"{cost['samples_per_second']:,.1f}",
        "-" if cost["steps"] is None else f"{cost['steps']:,}",
    )


def hours(value: float) -> str:
    """Hours, minutes or seconds, whichever reads well."""
    if value >= 1:
        return f"{value:.1f} h"
    return f"{60 * value:.1f} min" if value >= 1 / 60 else f"{3600 * value:.1f} s"


def device_word(cost: dict[str, Any]) -> str:
    """What the device hours are hours of."""
    return {"cuda": "GPU", "cpu": "process"}.get(cost["device"], "rank")


def print_comparison(told: dict[str, Any]) -> None:
    """The comparison on the terminal."""
    screen = terminal()
    console = screen if screen.is_terminal else terminal(width=150)  # in a log, lines may be long
    for note in told["notes"]:
        console.print(Panel(Text(printable(note)), style="yellow" if note.startswith("NOT ALL") else "dim"))
    table = Table("model", "films", *(LABELS[measure] for measure in SHOWN), title=f"{told['split']} split")
    for row in told["models"]:
        figures = row["on_own_films"]
        table.add_row(printable(row["name"]), f"{row['films']:,}", *(share(figures[measure]) for measure in SHOWN))
    for row in told["study_2018"]["test"]:
        table.add_row(f"2018: {row['model']}", "3,000 others", *_their_cells(row), style="dim")
    console.print(table)
    genres = Table("F1, fitted", *(printable(row["name"]) for row in told["models"]))
    for genre in told["genres"]:
        genres.add_row(printable(genre), *(_plain(row["per_genre"][genre]["f1_fitted"]) for row in told["models"]))
    console.print(genres)
    costs = Table("model", *COST_COLUMNS)
    for row in told["models"]:
        costs.add_row(printable(row["name"]), *cost_cells(row["cost"]))
    console.print(costs)
    pairs = Table("difference, points", "films", *(LABELS[measure] for measure in MAIN), "p, micro F1 (Holm)")
    shown = {told["headline"].get("one"), told["headline"].get("other")}
    chosen = [pair for pair in told["differences"] if shown & {pair["one"], pair["other"]}]
    for pair in chosen:
        pairs.add_row(printable(_names(pair)), *_difference_cells(pair, told["resamples"]))
    console.print(pairs)
    if len(chosen) < len(told["differences"]):
        console.print(f"{len(told['differences']) - len(chosen)} more differences are in the report", style="dim")
    head = told["headline"]
    console.print(Text.assemble((printable(head["question"]), "bold"), " ", printable(head["answer"])))
    for line in _beside(told):
        console.print(f"  {printable(line)}")


def _beside(told: dict[str, Any]) -> list[str]:
    """What is to be said beside the answer."""
    strongest = [strongest_words(told["strongest"])] if told["strongest"] else []
    return [*told["headline"].get("beside", []), *strongest]


def _names(pair: dict[str, Any]) -> str:
    return f"{pair['one']} \N{MINUS SIGN} {pair['other']}"


def strongest_words(row: dict[str, Any]) -> str:
    """The strongest model against the strongest baseline, in a sentence."""
    return (
        f"The strongest model on val, {row['model']}, minus the strongest baseline on val, {row['baseline']}: "
        f"{points(row['value'])} points of {LABELS[row['measure']]} ({points(row['low'])} to {points(row['high'])}) on "
        f"{row['films']:,} films."
    )


def _difference_cells(pair: dict[str, Any], resamples: int) -> list[str]:
    rows = [pair["measures"][measure] for measure in MAIN]
    main = rows[0] or rows[1]
    p = f"{p_value(main['p'], resamples)} ({p_value(main['p_holm'], resamples)})"
    return [f"{pair['films']:,}", *("-" if row is None else interval(row) for row in rows), p]


def _their_cells(row: dict[str, Any]) -> list[str]:
    known = {"micro_f1": row["micro_f1"], "accuracy": row["accuracy"]}
    return [f"{known[measure]:.3f}" if measure in known else "" for measure in SHOWN]


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def markdown(told: dict[str, Any]) -> str:
    """The comparison as a Markdown document."""
    lines = [f"# {escaped(told['headline']['question'])}", "", f"**{escaped(told['headline']['answer'])}**", ""]
    lines += [f"- {escaped(line)}" for line in _beside(told)]
    lines += ["", *(f"> {escaped(note)}\n" for note in told["notes"])]
    lines += [f"## Models, {told['split']} split", "", *_models_markdown(told), ""]
    lines += [
        "F1 without a remark: at thresholds fitted on val. ±: standard deviation over seeds.",
        "",
        "## Differences in points, 95 % interval (paired bootstrap over films)",
        "",
        *_table(
            ["difference", "films", *(LABELS[measure] for measure in MAIN), "p, micro F1 (Holm)"],
            [[escaped(_names(pair)), *_difference_cells(pair, told["resamples"])] for pair in told["differences"]],
        ),
        "",
        "## F1 by genre, fitted thresholds",
        "",
        *_table(
            ["genre", "films", *(escaped(row["name"]) for row in told["models"]), "2018 study, frozen, at 0.5"],
            [_genre_cells(told, genre) for genre in told["genres"]],
        ),
        "",
        "## Cost of training, without evaluations",
        "",
        *_table(["model", *COST_COLUMNS], [[escaped(row["name"]), *cost_cells(row["cost"])] for row in told["models"]]),
        "",
    ]
    return "\n".join(lines)


def _models_markdown(told: dict[str, Any]) -> list[str]:
    rows = [
        [escaped(row["name"]), f"{row['films']:,}", *(share(row["on_own_films"][measure]) for measure in SHOWN)]
        for row in told["models"]
    ]
    theirs = [
        [f"*2018 study: {row['model']}*", "*3,000 others*", *_their_cells(row)] for row in told["study_2018"]["test"]
    ]
    return _table(["model", "films", *(LABELS[measure] for measure in SHOWN)], rows + theirs)


def _genre_cells(told: dict[str, Any], genre: str) -> list[str]:
    theirs = told["study_2018"]["per_genre_of_combined_frozen"].get(genre)
    films = max(row["per_genre"][genre]["films"] for row in told["models"])
    ours = [_plain(row["per_genre"][genre]["f1_fitted"]) for row in told["models"]]
    return [escaped(genre), f"{films:,}", *ours, "-" if theirs is None else f"{theirs['f1'] / 100:.3f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"| {' | '.join('---' for _ in head)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
