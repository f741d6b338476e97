"""The settings in which a step fits a card, each with its largest micro-batch, and the best of them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast, get_args

from genre_dist.config import Config, derive_batches
from genre_dist.parallel.deepspeed_config import bucket_bytes
from genre_dist.parallel.strategies import strategy_name
from genre_dist.planner.memory import (
    Checkpointing,
    Precision,
    Setting,
    Strategy,
    card_bytes,
    largest_micro_batch,
    peak_bytes,
    static_bytes,
)
from genre_dist.planner.planned_model import PlannedModel, plan_model

LEVERS = ("bf16", "checkpointing", "accumulation", "sharding", "offload")
ENOUGH = 16
"""The smallest micro-batch that keeps a GPU busy: below it, a lever that costs time is better than a smaller one."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting and the memory that it needs."""

    setting: Setting
    micro_batch: int
    """The largest that fits; a rank's share if none does."""
    fits: bool
    parts: dict[str, float]
    """Bytes that a rank holds all the time."""
    peak: float
    """Expected bytes of `torch.cuda.max_memory_allocated`."""
    card: float
    """Bytes of the card's memory."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """All options for a card and the best one (None if nothing fits)."""

    config: Config
    ranks: int
    card: int
    share: int
    """Samples of a step on one rank."""
    planned: PlannedModel
    options: tuple[Option, ...]
    best: Option | None


def make_plan(
    config: Config, card: int, ranks: int, levers: tuple[str, ...] = LEVERS, planned: PlannedModel | None = None
) -> MemoryPlan:
    """Try every strategy with every lever. ValueError for an unknown lever or a batch that the ranks cannot share.

    `planned`: the traces of an earlier plan of the same model.
    """
    if unknown := set(levers) - set(LEVERS):
        raise ValueError(f"unknown lever {', '.join(sorted(unknown))}; the levers are {', '.join(LEVERS)}")
    share = derive_batches(config.data, ranks).per_rank
    planned = planned or plan_model(config, get_args(Checkpointing) if "checkpointing" in levers else ("none",))
    least = 1 if "accumulation" in levers else share
    options = tuple(_option(planned, way, share, card, least) for way in _ways(config, ranks, levers, planned))
    best = min((option for option in options if option.fits), key=_cost, default=None)
    return MemoryPlan(config=config, ranks=ranks, card=card, share=share, planned=planned, options=options, best=best)


def _ways(config: Config, ranks: int, levers: tuple[str, ...], planned: PlannedModel) -> Iterator[Setting]:
    """All combinations that the levers allow; a `train.precision` that the configuration sets stays."""
    precisions: tuple[Precision, ...] = ("bf16", "fp32") if "bf16" in levers else ("fp32",)
    if config.train.precision != "auto":
        precisions = (config.train.precision,)
    strategies: list[tuple[Strategy, bool]] = [("single" if ranks == 1 else "ddp", False)]
    if "sharding" in levers and ranks > 1:
        strategies += [("fsdp", False), ("zero1", False), ("zero2", False), ("zero3", False)]
    if "offload" in levers:
        strategies += [("zero2", True)] if ranks == 1 else [("zero2", True), ("zero3", True)]
    way = configured_setting(config, ranks, "fp32")
    for (name, offload), precision, kind in itertools.product(strategies, precisions, planned.traces):
        yield replace(way, strategy=name, offload=offload, precision=precision, checkpointing=kind)


def configured_setting(config: Config, ranks: int, precision: str, accumulates: bool = False) -> Setting:
    """The setting in which a configuration runs on so many ranks."""
    return Setting(
        strategy=cast(Strategy, strategy_name(config, ranks)),
        ranks=ranks,
        precision="bf16" if precision == "bf16" else "fp32",
        checkpointing=config.train.activation_checkpointing,
        offload=config.parallel.offload_optimizer,
        accumulates=accumulates,
        bucket=bucket_bytes(config),
    )


def _option(planned: PlannedModel, setting: Setting, share: int, card: int, least: int) -> Option:
    result = largest_micro_batch(planned.traces, planned.sizes, setting, share, card, least)
    micro, setting = result or (share, setting)
    peak = peak_bytes(planned.traces, planned.sizes, setting, micro)
    return Option(
        setting=setting,
        micro_batch=micro,
        fits=result is not None,
        parts=static_bytes(planned.sizes, setting),
        peak=peak,
        card=card_bytes(peak),
    )


def _cost(option: Option) -> tuple[float, ...]:
    """Sort key of options: first a micro-batch that keeps the GPU busy, then levers that cost little time."""
    setting = option.setting
    return (
        -min(option.micro_batch, ENOUGH),
        setting.offload,
        setting.precision != "bf16",
        get_args(Checkpointing).index(setting.checkpointing),
        get_args(Strategy).index(setting.strategy),
    )


def planned_micro_batch(config: Config, card: int, ranks: int, precision: str) -> int:
    """The largest micro-batch for a configuration, with texts of the maximum length.

    1 if not even that fits: the run then fails with a message. Raises ValueError if the model cannot be planned.
    """
    share = derive_batches(config.data, ranks).per_rank
    setting = configured_setting(config, ranks, precision)
    planned = plan_model(config, (setting.checkpointing,), tokens=config.data.max_tokens)
    result = largest_micro_batch(planned.traces, planned.sizes, setting, share, card)
    return result[0] if result else 1
