"""The comparison as tables, for the terminal and as Markdown."""

from collections.abc import Sequence
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from genre_dist.compare.costs import hours, hours_with_encoders
from genre_dist.compare.shown_measures import SHOWN, ShownMeasures
from genre_dist.compare.verdict import between, interval, p_value
from genre_dist.pages.rendering import points
from genre_dist.printable import markdown as escaped
from genre_dist.printable import printable, terminal
from genre_dist.schema import Schema

COST_COLUMNS = ("hours", "with encoders", "device hours", "peak memory", "samples/s", "steps")


def share(figure: dict[str, Any] | None) -> str:
    """A figure between 0 and 1, with the standard deviation over its seeds if there are several."""
    if figure is None:
        return "-"
    spread = f" ± {figure['sd']:.3f}" if figure["sd"] is not None else ""
    return f"{figure['value']:.3f}{spread}"


def cost_cells(cost: dict[str, Any] | None) -> tuple[str, ...]:
    """Hours, those with the runs that the encoders started from, device hours, peak memory, speed and steps."""
    if cost is None:
        return ("-",) * len(COST_COLUMNS)
    devices = "-" if cost["device_hours"] is None else f"{hours(cost['device_hours'])} {device_word(cost)}"
    memory = cost["peak_memory_bytes"]
    return (
        hours(cost["hours"]),
        hours_with_encoders(cost),
        devices,
        "-" if memory is None else f"{memory / 2**30:.1f} GiB",
        "-" if cost["samples_per_second"] is None else f"{cost['samples_per_second']:,.1f}",
        "-" if cost["steps"] is None else f"{cost['steps']:,}",
    )


def device_word(cost: dict[str, Any]) -> str:
    """The unit of device hours: GPU, process or rank."""
    return {"cuda": "GPU", "cpu": "process"}.get(cost["device"], "rank")


Sheet = tuple[str, list[str], list[list[str]]]
"""A table's title, header and rows. Only the header and the first column hold names from users' files (escape them)."""


def sheets(comparison: dict[str, Any], pairs: Sequence[dict[str, Any]], declared: Schema) -> list[Sheet]:
    """The models, differences of pairs, F1 by label and costs."""
    models, samples, label = comparison["models"], declared.samples, declared.label
    shown = SHOWN[declared.labels.choose]
    names = [row["name"] for row in models]
    of_study = ["2018 study, frozen, at 0.5"] if comparison["study_2018"] else []
    fitted = ", fitted thresholds" if declared.labels.choose == "many" else ""
    on_shared = _on_shared(comparison, declared)
    asked = {frozenset((pair["one"], pair["other"])) for pair in pairs}
    fewer = [row for row in comparison["differences_on_shared_films"] if {row["one"], row["other"]} in asked]
    by_label = f"F1 by {label}{fitted}" + "".join(f", {title[0].lower()}{title[1:]}" for title, _, _ in on_shared)
    return [
        (
            f"Models, {comparison['split']} split",
            ["model", samples, *(shown.names[measure] for measure in shown.columns)],
            _model_rows(models, "on_own_films", shown.columns) + _study_rows(comparison, shown.columns),
        ),
        *on_shared,
        *(
            (
                f"Differences in points{where}, 95 % interval (paired bootstrap over {samples}, and over seeds)",
                [
                    *("difference", samples, *(shown.names[measure] for measure in shown.main)),
                    f"p, {shown.names[shown.decides[0]]} (Holm)",
                ],
                [_difference_cells(pair, comparison["resamples"], shown) for pair in own],
            )
            for where, own in (("", pairs), (" on those that all have", fewer))
            if own or not where
        ),
        (by_label, [label, samples, *names, *of_study], _label_rows(comparison, shown.of_label)),
        (
            "Cost of training, without evaluations",
            ["model", *COST_COLUMNS],
            [[row["name"], *cost_cells(row["cost"])] for row in models],
        ),
    ]


def _model_rows(models: Sequence[dict[str, Any]], where: str, columns: Sequence[str]) -> list[list[str]]:
    return [[row["name"], f"{row['films']:,}", *(share(row[where][measure]) for measure in columns)] for row in models]


def _on_shared(comparison: dict[str, Any], declared: Schema) -> list[Sheet]:
    """The models on the samples that all have, if one has more."""
    models, shared, shown = comparison["models"], comparison["shared_films"], SHOWN[declared.labels.choose]
    if all(row["films"] == shared for row in models):
        return []
    rows = _model_rows([row | {"films": shared} for row in models], "on_shared_films", shown.columns)
    header = ["model", declared.samples, *(shown.names[measure] for measure in shown.columns)]
    return [(f"On the {shared:,} {declared.samples} that all have", header, rows)]


def _study_rows(comparison: dict[str, Any], columns: Sequence[str]) -> list[list[str]]:
    """The 2018 study's models, if the data is TMDB's."""
    rows = comparison["study_2018"]["test"] if comparison["study_2018"] else []
    return [
        [f"2018 study: {row['model']}", "3,000 others", *(_plain(row[name]) if name in row else "" for name in columns)]
        for row in rows
    ]


def _label_rows(comparison: dict[str, Any], measure: str) -> list[list[str]]:
    """Each label with every model's F1, and the 2018 study's if the data is TMDB's."""
    study = comparison["study_2018"] and comparison["study_2018"]["per_genre_of_combined_frozen"]
    rows = []
    for label in comparison["genres"]:
        by_model = [row["per_genre"][label] for row in comparison["models"]]
        f1 = [row[measure] for row in by_model]
        if study is not None:
            f1.append(study[label]["f1"] / 100 if label in study else None)
        rows.append([label, f"{max(row['films'] for row in by_model):,}", *map(_plain, f1)])
    return rows


def print_comparison(comparison: dict[str, Any], declared: Schema) -> None:
    """Print the comparison to the terminal, with only those differences that involve a model of the verdict."""
    screen = terminal()
    console = screen if screen.is_terminal else terminal(width=150)  # in a log, lines may be long
    for note in comparison["notes"]:
        console.print(Panel(Text(printable(note)), style="yellow" if note.startswith("NOT ALL") else "dim"))
    verdict = comparison["headline"]
    asked = {verdict.get("one"), verdict.get("other")}
    chosen = [pair for pair in comparison["differences"] if asked & {pair["one"], pair["other"]}]
    for title, header, rows in sheets(comparison, chosen, declared):
        table = Table(*map(printable, header), title=title)
        for row in rows:
            table.add_row(*map(printable, row))
        console.print(table)
    if len(chosen) < len(comparison["differences"]):
        console.print(f"{len(comparison['differences']) - len(chosen)} more differences are in the report", style="dim")
    console.print(Text.assemble((printable(verdict["question"]), "bold"), " ", printable(verdict["answer"])))
    for line in _beside(comparison, declared):
        console.print(f"  {printable(line)}")
    for question, answer in _further(comparison):
        console.print(Text.assemble((printable(question), "bold"), " ", printable(answer)))


def markdown(comparison: dict[str, Any], declared: Schema) -> str:
    """The comparison as a Markdown document."""
    verdict = comparison["headline"]
    lines = [f"# {escaped(verdict['question'])}", "", f"**{escaped(verdict['answer'])}**", ""]
    lines += [f"- {escaped(line)}" for line in _beside(comparison, declared)]
    further = _further(comparison)
    lines += [line for question, answer in further for line in ("", f"**{escaped(question)}** {escaped(answer)}")]
    lines += ["", *(f"> {escaped(note)}\n" for note in comparison["notes"])]
    for title, header, rows in sheets(comparison, comparison["differences"], declared):
        cells = [list(map(escaped, header)), ["---"] * len(header), *([escaped(row[0]), *row[1:]] for row in rows)]
        lines += [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    fitted = "F1 without a remark: at thresholds fitted on val. " if declared.labels.choose == "many" else ""
    lines += [f"{fitted}±: standard deviation over seeds.", ""]
    return "\n".join(lines)


def _beside(comparison: dict[str, Any], declared: Schema) -> list[str]:
    """The remarks beside the answer."""
    strongest = [strongest_words(comparison["strongest"], declared)] if comparison["strongest"] else []
    return [*comparison["headline"].get("beside", []), *strongest]


def _further(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    """The questions beside the headline's, and their answers."""
    asked = comparison["questions"]
    return [(one["question"], one["answer"]) for one in asked if one["question"] != comparison["headline"]["question"]]


def strongest_words(row: dict[str, Any], declared: Schema) -> str:
    """The strongest model against the strongest baseline, in a sentence."""
    name, fewer = SHOWN[declared.labels.choose].names[row["measure"]], row.get("on_shared_films")
    return (
        f"The strongest model on val, {row['model']}, minus the strongest baseline on val, {row['baseline']}: "
        f"{points(row['value'])} points of {name} ({between(row)}) on {row['films']:,} {declared.samples}"
        + (f", {interval(fewer)} on the {fewer['films']:,} that all have." if fewer else ".")
    )


def _difference_cells(pair: dict[str, Any], resamples: int, shown: ShownMeasures) -> list[str]:
    rows = [pair["measures"][measure] for measure in shown.main]
    main = next(row for measure in shown.decides if (row := pair["measures"][measure]) is not None)
    p = f"{p_value(main['p'], resamples)} ({p_value(main['p_holm'], resamples)})"
    name = f"{pair['one']} \N{MINUS SIGN} {pair['other']}"
    return [name, f"{pair['films']:,}{beyond(pair)}", *("-" if row is None else interval(row) for row in rows), p]


def beyond(pair: dict[str, Any]) -> str:
    """How many samples each model of a pair has beside those of both, if one has any."""
    return " (beyond: {:,} and {:,})".format(*pair["beyond"]) if "beyond" in pair else ""


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
