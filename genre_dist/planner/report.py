"""A plan for people (a table, what it consists of, the command) and for programs (JSON)."""

import shlex
from dataclasses import asdict
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from genre_dist.parallel.deepspeed_config import bucket_bytes
from genre_dist.planner import memory
from genre_dist.planner.options import Option, Plan
from genre_dist.planner.sizes import gb, mb
from genre_dist.planner.trace import RECURRENT_VALUES, Trace
from genre_dist.printable import printable


def print_plan(plan: Plan, config_file: str) -> None:
    """The whole answer."""
    console = Console(highlight=False)
    for line in _model_lines(plan):
        console.print(printable(line), soft_wrap=True, markup=False)
    console.print(_table(plan))
    for line in _answer(plan, config_file):
        console.print(printable(line), soft_wrap=True, markup=False)


def _model_lines(plan: Plan) -> list[str]:
    planned, sizes = plan.planned, plan.planned.sizes
    lines = [f"vocabulary        {planned.vocabulary.words:,} words ({planned.vocabulary.source})"]
    for part, (trained, frozen) in planned.parameters.items():
        lines.append(f"{part:<18}{trained:,} parameters trained, {frozen:,} frozen")
    lines.append(
        f"weights           {gb(sizes.trained + sizes.frozen)}, gradients {gb(sizes.trained)}, AdamW's states "
        f"{gb(2 * sizes.trained)}: 16 bytes a trained parameter"
    )
    for kind, trace in planned.traces.items():
        fp32, bf16 = (_growth(trace, precision) for precision in get_args(memory.Precision))
        lines.append(
            f"activations       {mb(trace.activations)} a sample kept in fp32; the peak grows by {mb(fp32)} in fp32, "
            f"{mb(bf16)} in bf16 (checkpointing {kind}, texts of {planned.tokens} tokens)"
        )
    return lines


def _growth(trace: Trace, precision: memory.Precision) -> float:
    """Bytes by which a sample more raises the peak."""
    setting = memory.Setting(strategy="ddp", ranks=1, precision=precision)
    return (memory.step_bytes(trace, setting, 2000) - memory.step_bytes(trace, setting, 1000)) / 1000


def _table(plan: Plan) -> Table:
    """A row a strategy, a column for precision and checkpointing; the largest micro-batch and what it needs."""
    columns = list(dict.fromkeys((o.setting.precision, o.setting.checkpointing) for o in plan.options))
    rows: dict[str, dict[tuple[str, str], Option]] = {}
    for option in plan.options:
        name = option.setting.strategy + (", offload" if option.setting.offload else "")
        rows.setdefault(name, {})[option.setting.precision, option.setting.checkpointing] = option
    ranks = "rank" if plan.ranks == 1 else "ranks"
    table = Table(
        padding=0,  # eighty columns have to do
        title=f"largest micro-batch (GB of the card) for {plan.share} samples a rank, {plan.ranks} {ranks} of "
        f"{gb(plan.card)}; by precision and activation checkpointing",
        title_justify="left",
    )
    table.add_column("strategy", no_wrap=True, min_width=14)  # rich would cut it first
    for precision, kind in columns:
        table.add_column(f"{precision}\n{kind}", justify="right")
    for name, found in rows.items():
        table.add_row(name, *(_cell(found[column], plan) for column in columns))
    return table


def _cell(option: Option, plan: Plan) -> str:
    needs = f"{option.card / 2**30:.1f}"
    if not option.fits:
        return f"[red]no ({needs})[/]"
    text = f"{option.micro_batch} ({needs})"
    return f"[bold green]{text}[/]" if option is plan.best else text


def _answer(plan: Plan, config_file: str) -> list[str]:
    best = plan.best
    if best is None:
        nearest = min(plan.options, key=lambda option: option.card)
        return [
            f"nothing fits: the least is {gb(nearest.card)} for micro-batches of {nearest.micro_batch} "
            f"({describe(nearest)}). Use a larger card, more GPUs, a smaller data.image_size, or freeze a part"
        ]
    held = ", ".join(f"{name} {gb(size)}" for name, size in best.parts.items() if size)
    return [
        f"best: {describe(best)}, micro-batches of {best.micro_batch}: {gb(best.peak)} allocated at the peak ({held}; "
        f"the rest is activations, copies and {mb(memory.WORKSPACE_BYTES)} of workspace), {gb(best.card)} of the card",
        f"assumed, not measured: {mb(memory.CONTEXT_BYTES)} for CUDA, cuDNN and NCCL, {memory.FRAGMENTATION:.0%} "
        f"fragmentation, {mb(memory.WORKSPACE_BYTES)} workspace, {RECURRENT_VALUES} numbers a unit and token in "
        "recurrent layers; `--measure` on a GPU compares the peak",
        "",
        f"    {command(plan, best, config_file)}",
    ]


def describe(option: Option) -> str:
    """An option in words."""
    setting = option.setting
    kind = "" if setting.checkpointing == "none" else f", checkpointing {setting.checkpointing}"
    return f"{setting.strategy}, {setting.precision}{kind}" + (
        ", optimizer states on the CPU" if setting.offload else ""
    )


def command(plan: Plan, option: Option, config_file: str) -> str:
    """The command that trains this way."""
    setting = option.setting
    words = [
        f"torchrun --nproc_per_node={plan.ranks} -m genre_dist.train",
        f"--config {shlex.quote(config_file)}" if config_file else "",
        f"--data.global_batch {plan.config.data.global_batch} --data.micro_batch {option.micro_batch}",
        f"--parallel.strategy {setting.strategy} --train.precision {setting.precision}",
        f"--train.activation_checkpointing {setting.checkpointing}" if setting.checkpointing != "none" else "",
        "--parallel.offload_optimizer true" if setting.offload else "",
    ]
    return " ".join(filter(None, words))


def to_json(plan: Plan, config_file: str) -> dict[str, Any]:
    """Everything the table shows, in bytes."""
    planned = plan.planned
    best = plan.best
    return {
        "card_bytes": plan.card,
        "ranks": plan.ranks,
        "global_batch": plan.config.data.global_batch,
        "samples_per_rank": plan.share,
        "vocabulary": planned.vocabulary._asdict(),
        "parameters": {part: {"trained": t, "frozen": f} for part, (t, f) in planned.parameters.items()},
        "sizes": asdict(planned.sizes),
        "activations_per_sample_fp32": {kind: trace.activations for kind, trace in planned.traces.items()},
        "tokens": planned.tokens,
        "assumed": {
            "context_bytes": memory.CONTEXT_BYTES,
            "workspace_bytes": memory.WORKSPACE_BYTES,
            "fragmentation": memory.FRAGMENTATION,
            "zero_bucket_bytes": bucket_bytes(plan.config),
            "recurrent_values": RECURRENT_VALUES,
        },
        "options": [asdict(option) for option in plan.options],
        "best": None if best is None else asdict(best) | {"command": command(plan, best, config_file)},
    }
