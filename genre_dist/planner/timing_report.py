"""A computed timing as a table and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from genre_dist.planner.roofline import OPERATION_SECONDS, REACHED, RECURRENT_STEP_SECONDS, Timing


def print_timing(timing: Timing) -> None:
    """Print the timing."""
    for line in (*_heading(timing), *_table(timing), *_assumed(timing)):
        print(line)


def _heading(timing: Timing) -> list[str]:
    card, planned = timing.card, "the planner's for this memory" if timing.planned else "as given"
    peak = card.flops("bf16" if timing.precision == "bf16" else "tf32") / 1e12
    return [
        f"computed, not measured: {timing.ranks} x {card.name}, {timing.precision}; data sheet: {peak:g} TFLOPS, "
        f"{card.bandwidth:g} GB/s of memory, {card.link:g} GB/s between GPUs",
        f"{timing.samples} samples a step, micro-batches of {timing.micro_batch} ({planned}), {timing.accumulation} of "
        f"them a rank; {timing.flops / 1e9:.1f} GFLOP a sample",
    ]


def _table(timing: Timing) -> Iterator[str]:
    """A row per kind of operation (of a sample, and ms of a step), then the step's; two columns eager, two compiled."""
    ways, passes = timing.ways, timing.accumulation
    yield f"{'at best: a sample, ms a step':<29}{'GFLOP':>7}" + "".join(
        f"{'MB':>8}{'ms ' + way.name.split()[-1]:>13}" for way in ways
    )
    beside = [(work,) * len(ways) for work in (*(timing.recurrent or ()), timing.copy) if work.seconds]
    for works in [*zip(*(way.works for way in ways), strict=True), *beside]:
        cells = (f"{_a_sample(work.bytes, 1e6, timing):>8}{_ms(work.seconds * passes):>13}" for work in works)
        yield f"{works[0].kind:<29}{_a_sample(works[0].flops, 1e9, timing):>7}{''.join(cells)}"
    rows = {"passes": [_ms(way.passes * passes) for way in ways]}
    rows[timing.update.kind] = [_ms(timing.update.seconds)] * len(ways)
    if timing.ranks > 1:
        rows[f"all-reduce, {timing.gradient_bytes / 1e6:.0f} MB"] = [_ms(timing.all_reduce)] * len(ways)
        rows["  of it exposed"] = [_ms(way.exposed) for way in ways]
    rows["step at best"] = [_ms(way.step) for way in ways]
    rows["samples/s at best"] = [f"{timing.samples / way.step:,.0f}" for way in ways]
    rows["MFU at best"] = [f"{timing.mfu(way.step):.1%}" for way in ways]
    rows["samples/s likely"] = ["{1:,.0f}-{0:,.0f}".format(*(timing.samples / s for s in way.likely)) for way in ways]
    rows["MFU likely, %"] = ["{1:.0f}-{0:.0f}".format(*(100 * timing.mfu(s) for s in way.likely)) for way in ways]
    for name, texts in rows.items():
        yield f"{name:<36}" + "".join(f"{text:>21}" for text in texts)


def _assumed(timing: Timing) -> list[str]:
    low, high = REACHED
    host = ", ".join(
        f"{way.name} {way.launches:,} in {_ms(timing.accumulation * way.launches * OPERATION_SECONDS)} ms"
        for way in timing.ways
    )
    lines = [
        f"likely: {low:.0%} to {high:.0%} of the roofline are reached, and the host starts an operation in "
        f"{OPERATION_SECONDS * 1e6:.0f} us ({host}); both assumed"
    ]
    if timing.recurrent:
        lines.append(
            f"the recurrent network runs beside the image's, the longer one counts; assumed: {timing.tokens} steps "
            f"(the longest text there may be) a layer, {RECURRENT_STEP_SECONDS * 1e6:.0f} us each"
        )
    elif timing.tokens:
        lines.append(f"the text encoder's operations come beside the others', for texts of {timing.tokens} tokens")
    if timing.ranks > 1:
        lines.append("all-reduce: a ring as of ddp, all GPUs in one node, beside the last backward pass")
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _a_sample(amount: float, unit: float, timing: Timing) -> str:
    return f"{amount / timing.micro_batch / unit:.1f}" if amount else ""


def timing_to_json(timing: Timing) -> dict[str, Any]:
    """All numbers of the table, in seconds, bytes and FLOP; works are those of a micro-batch."""
    answer = asdict(timing)
    for way, figures in zip(timing.ways, answer["ways"], strict=True):
        figures["samples_per_second"] = timing.samples / way.step
        figures["mfu"] = timing.mfu(way.step)
        figures["likely_samples_per_second"] = [timing.samples / seconds for seconds in way.likely]
    return answer | {
        "measured": False,
        "card": timing.card._asdict(),
        "recurrent": answer["recurrent"] or [],
        "assumed": {
            "reached": REACHED,
            "recurrent_step_seconds": RECURRENT_STEP_SECONDS,
            "operation_seconds": OPERATION_SECONDS,
        },
    }
