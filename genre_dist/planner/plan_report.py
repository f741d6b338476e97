"""A plan as text (a table, the parts of the memory, the command) and as JSON."""

import shlex
from dataclasses import asdict
from itertools import groupby
from typing import Any

from genre_dist.planner import memory
from genre_dist.planner.options import MemoryPlan, Option
from genre_dist.planner.planned_model import PlannedModel
from genre_dist.planner.sizes import gb, mb
from genre_dist.planner.trace import RECURRENT_VALUES, Trace
from genre_dist.printable import printable


def print_plan(plan: MemoryPlan, config_file: str) -> None:
    """Print the plan."""
    for line in (*_model_lines(plan.planned), *_table(plan), *_answer(plan, config_file)):
        print(printable(line))


def parameter_lines(planned: PlannedModel) -> list[str]:
    """A line for each part of the model."""
    return [
        f"{part:<18}{trained:,} parameters trained, {frozen:,} frozen"
        for part, (trained, frozen) in planned.parameters.items()
    ]


def held(parts: dict[str, float]) -> str:
    """The memory that a rank holds all the time, part by part."""
    return ", ".join(f"{name} {gb(size)}" for name, size in parts.items() if size)


def _model_lines(planned: PlannedModel) -> list[str]:
    sizes = planned.sizes
    return [
        f"vocabulary        {planned.vocabulary.words:,} words ({planned.vocabulary.source})",
        *parameter_lines(planned),
        f"weights           {gb(sizes.trained + sizes.frozen)}, gradients {gb(sizes.trained)}, AdamW's states "
        f"{gb(2 * sizes.trained)}: 16 bytes a trained parameter",
        *(
            f"activations       {mb(trace.activations)} a sample kept in fp32; the peak grows by "
            f"{mb(_growth(trace, 'fp32'))} in fp32, {mb(_growth(trace, 'bf16'))} in bf16 (checkpointing {kind}, texts "
            f"of {planned.tokens} tokens)"
            for kind, trace in planned.traces.items()
        ),
    ]


def _growth(trace: Trace, precision: memory.Precision) -> float:
    """Bytes by which one more sample raises the peak."""
    setting = memory.Setting(strategy="ddp", ranks=1, precision=precision)
    return (memory.step_bytes(trace, setting, 2000) - memory.step_bytes(trace, setting, 1000)) / 1000


def _table(plan: MemoryPlan) -> list[str]:
    """The largest micro-batch and its memory: a row per strategy and precision, a column per kind of checkpointing.

    One line if all options have the same micro-batch.
    """
    title = f"largest micro-batch (GB of the card) for {plan.share} samples a rank, {plan.ranks} "
    title += f"{'rank' if plan.ranks == 1 else 'ranks'} of {gb(plan.card)}"
    cards = [option.card for option in plan.options]
    if {(option.fits, option.micro_batch) for option in plan.options} == {(True, plan.share)}:
        return [f"{title}: {plan.share} ({gb(min(cards))} to {gb(max(cards))}) by each of {len(cards)} options"]
    cells = [f"{kind:>14}" for kind in plan.planned.traces]
    lines = [f"{title}; by activation checkpointing", f"{'':<20}{''.join(cells)}"]
    for (strategy, offload, precision), options in groupby(plan.options, _row):
        name = f"{strategy}{', offload' if offload else ''}"
        lines.append(f"{name:<15}{precision:<5}{''.join(f'{_cell(option, plan):>14}' for option in options)}")
    return lines


def _row(option: Option) -> tuple[str, bool, str]:
    return option.setting.strategy, option.setting.offload, option.setting.precision


def _cell(option: Option, plan: MemoryPlan) -> str:
    mark = "*" if option is plan.best else ""
    return f"{mark}{option.micro_batch if option.fits else 'no'} ({option.card / 2**30:.1f})"


def _answer(plan: MemoryPlan, config_file: str) -> list[str]:
    best = plan.best
    if best is None:
        nearest = min(plan.options, key=lambda option: option.card)
        return [
            f"nothing fits: the least is {gb(nearest.card)} for micro-batches of {nearest.micro_batch} "
            f"({describe(nearest)}). Use a larger card, more GPUs, a smaller data.image_size, or freeze a part"
        ]
    return [
        f"best: {describe(best)}, micro-batches of {best.micro_batch}: {gb(best.peak)} allocated at the peak "
        f"({held(best.parts)}; the rest is activations, copies and {mb(memory.WORKSPACE_BYTES)} of workspace), "
        f"{gb(best.card)} of the card",
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
    states = ", optimizer states on the CPU" if setting.offload else ""
    return f"{setting.strategy}, {setting.precision}{kind}{states}"


def command(plan: MemoryPlan, option: Option, config_file: str) -> str:
    """The command that trains with this option."""
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


def to_json(plan: MemoryPlan, config_file: str) -> dict[str, Any]:
    """All numbers of the plan, in bytes."""
    planned, best = plan.planned, plan.best
    return {
        "card_bytes": plan.card,
        "ranks": plan.ranks,
        "global_batch": plan.config.data.global_batch,
        "samples_per_rank": plan.share,
        "vocabulary": planned.vocabulary._asdict() | {"declared": planned.vocabulary.declared.to_dict()},
        "parameters": {part: {"trained": t, "frozen": f} for part, (t, f) in planned.parameters.items()},
        "sizes": asdict(planned.sizes),
        "activations_per_sample_fp32": {kind: trace.activations for kind, trace in planned.traces.items()},
        "tokens": planned.tokens,
        "assumed": {
            "context_bytes": memory.CONTEXT_BYTES,
            "workspace_bytes": memory.WORKSPACE_BYTES,
            "fragmentation": memory.FRAGMENTATION,
            "zero_bucket_bytes": plan.options[0].setting.bucket,
            "recurrent_values": RECURRENT_VALUES,
        },
        "options": [asdict(option) for option in plan.options],
        "best": None if best is None else asdict(best) | {"command": command(plan, best, config_file)},
    }
