"""A timing for people (a table) and for programs (JSON): computed, not measured."""

from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.table import Table

from genre_dist.planner.roofline import OPERATION_SECONDS, REACHED, RECURRENT_STEP_SECONDS, Timing, Way, Work


def print_timing(timing: Timing) -> None:
    """The whole answer."""
    console = Console(highlight=False)
    for line in _what(timing):
        console.print(line, soft_wrap=True)
    console.print(_table(timing))
    for line in _assumed(timing):
        console.print(line, soft_wrap=True)


def _what(timing: Timing) -> list[str]:
    card, planned = timing.card, "the planner's for this memory" if timing.planned else "as given"
    peak = card.flops("bf16" if timing.precision == "bf16" else "tf32") / 1e12
    return [
        f"computed, not measured: {timing.ranks} x {card.name}, {timing.precision}; data sheet: {peak:g} TFLOPS, "
        f"{card.bandwidth:g} GB/s of memory, {card.link:g} GB/s between GPUs",
        f"{timing.samples} samples a step, micro-batches of {timing.micro_batch} ({planned}), {timing.accumulation} of "
        f"them a rank; {timing.flops / 1e9:.1f} GFLOP a sample",
    ]


def _table(timing: Timing) -> Table:
    table = Table(title="at best, by kind of operation: of a sample, and ms of a step", title_justify="left", padding=0)
    table.add_column("", no_wrap=True, min_width=26)
    table.add_column("GFLOP", justify="right")
    for way in timing.ways:
        table.add_column("MB\n" + way.name.replace(" ", "\n"), justify="right")
        table.add_column("ms", justify="right", min_width=11)
    for kind in (work.kind for work in timing.ways[0].works):
        table.add_row(*_row(timing, [{work.kind: work for work in way.works}[kind] for way in timing.ways]))
    table.add_section()
    for work in (*(timing.recurrent or ()), timing.copy):
        if work.seconds:
            table.add_row(*_row(timing, [work] * len(timing.ways)))
    table.add_section()
    _add_step(table, timing)
    return table


def _row(timing: Timing, works: list[Work]) -> list[str]:
    cells = [works[0].kind, _number(works[0].flops / timing.micro_batch / 1e9)]
    for work in works:
        cells += [_number(work.bytes / timing.micro_batch / 1e6), _ms(work.seconds * timing.accumulation)]
    return cells


def _add_step(table: Table, timing: Timing) -> None:
    """The step's rows: passes, exchange, update, and what follows from their sum."""

    def add(title: str, *cells: str) -> None:
        table.add_row(title, "", *(part for cell in cells for part in ("", cell)))

    ways = timing.ways
    add("passes", *(_ms(way.passes * timing.accumulation) for way in ways))
    add(timing.update.kind, *(_ms(timing.update.seconds) for _ in ways))
    if timing.ranks > 1:
        add(f"all-reduce, {timing.gradient_bytes / 1e6:.0f} MB", *(_ms(timing.all_reduce) for _ in ways))
        add("  of it exposed", *(_ms(way.exposed) for way in ways))
    add("step at best", *(_ms(way.step) for way in ways))
    add("samples/s at best", *(f"{timing.samples / way.step:,.0f}" for way in ways))
    add("MFU at best", *(f"{timing.mfu(way.step):.1%}" for way in ways))
    table.add_section()
    add("samples/s likely", *(_range(*(timing.samples / seconds for seconds in way.likely)) for way in ways))
    add("MFU likely, %", *(_range(*(100 * timing.mfu(seconds) for seconds in way.likely)) for way in ways))


def _assumed(timing: Timing) -> list[str]:
    low, high = REACHED
    lines = [
        f"likely: {low:.0%} to {high:.0%} of the roofline are reached, and the host starts an operation in "
        f"{OPERATION_SECONDS * 1e6:.0f} us ({', '.join(_host(timing, way) for way in timing.ways)}); both assumed"
    ]
    if timing.recurrent:
        lines.append(
            f"the recurrent network runs beside the poster's, the longer one counts; assumed: {timing.tokens} steps "
            f"(the longest text there may be) a layer, {RECURRENT_STEP_SECONDS * 1e6:.0f} us each"
        )
    if timing.ranks > 1:
        lines.append("all-reduce: a ring as of ddp, all GPUs in one node, beside the last backward pass")
    return lines


def _host(timing: Timing, way: Way) -> str:
    return f"{way.name} {way.launches:,} in {_ms(timing.accumulation * way.launches * OPERATION_SECONDS)} ms"


def _range(high: float, low: float) -> str:
    return f"{low:,.0f}-{high:,.0f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value else ""


def timing_to_json(timing: Timing) -> dict[str, Any]:
    """Everything the table shows, in seconds, bytes and FLOP; works are those of a micro-batch."""
    told = {field.name: getattr(timing, field.name) for field in fields(timing)}
    ways = [
        asdict(way)
        | {
            "works": [work._asdict() for work in way.works],
            "samples_per_second": timing.samples / way.step,
            "mfu": timing.mfu(way.step),
            "likely_samples_per_second": [timing.samples / seconds for seconds in way.likely],
        }
        for way in timing.ways
    ]
    return told | {
        "measured": False,
        "card": timing.card._asdict(),
        "recurrent": [work._asdict() for work in timing.recurrent or ()],
        "copy": timing.copy._asdict(),
        "update": timing.update._asdict(),
        "ways": ways,
        "assumed": {
            "reached": REACHED,
            "recurrent_step_seconds": RECURRENT_STEP_SECONDS,
            "operation_seconds": OPERATION_SECONDS,
        },
    }
