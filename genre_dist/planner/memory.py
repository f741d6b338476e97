"""The peak of a rank's GPU memory, for any strategy, lever and micro-batch: pure arithmetic over a traced step.

Bytes per parameter: fp32 weight 4, gradient 4, AdamW's two moments 8. ZeRO and FSDP shard them over N ranks
(Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, without its fp16 copies, since weights here are fp32).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from genre_dist.parallel.deepspeed_config import REDUCE_BUCKET
from genre_dist.planner.trace import Trace

Strategy = Literal["single", "ddp", "fsdp", "zero1", "zero2", "zero3"]
Checkpointing = Literal["none", "selective", "stages", "blocks"]  # by rising cost in time
Precision = Literal["fp32", "bf16"]

CONTEXT_BYTES = int(0.6e9)
"""Assumed: CUDA context, cuDNN, cuBLAS and NCCL, outside of torch's allocator."""
WORKSPACE_BYTES = int(0.25e9)
"""Assumed: scratch memory of convolutions and matrix products, inside of torch's allocator."""
FRAGMENTATION = 0.06
"""Assumed: unused memory that torch's allocator holds, as a share of the used memory."""
ZERO_BUCKET_BYTES = 4 * REDUCE_BUCKET
"""DeepSpeed's communication buffer for gradients, allocated in full for any model; a JSON file may set another size."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes that do not depend on batch or lever, in bytes of fp32."""

    trained: int
    frozen: int
    buffers: int
    copied: int
    """Weights of which autocast keeps a half-size copy until their backward pass."""
    units: tuple[int, ...]
    """Weights of each unit that FSDP and ZeRO-3 gather together, largest first."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run a step."""

    strategy: Strategy
    ranks: int
    precision: Precision
    checkpointing: Checkpointing = "none"
    offload: bool = False
    """Optimizer states on the CPU (ZeRO)."""
    accumulates: bool = False
    """Several micro-batches a step: gradients stay between them."""
    bucket: int = ZERO_BUCKET_BYTES
    """ZeRO's communication buffer for gradients, in bytes."""


def static_bytes(sizes: Sizes, setting: Setting) -> dict[str, float]:
    """Bytes a rank holds all the time: weights, gradients that stay between steps, optimizer states, extra."""
    spread = 1 / setting.ranks
    weights: float = sizes.trained + sizes.frozen
    gradients = float(sizes.trained)
    states, extra = 2.0 * sizes.trained, 0.0
    if setting.strategy == "single" and not setting.accumulates:
        gradients = 0.0  # they live within the step and are in the trace
    if setting.strategy in ("fsdp", "zero3"):
        weights *= spread
        extra += _gathered(sizes)
    if setting.strategy in ("fsdp", "zero2", "zero3"):
        gradients *= spread
    if setting.strategy in ("fsdp", "zero1", "zero2", "zero3"):
        states *= spread
    if setting.strategy.startswith("zero"):
        # DeepSpeed keeps another fp32 copy of its shard of the weights
        states += sizes.trained * spread
        extra += setting.bucket
    if setting.offload:
        states = 0.0
    return {
        "weights": weights + sizes.buffers,
        "gradients": gradients,
        "optimizer": states,
        "extra": extra,
    }


def _gathered(sizes: Sizes) -> float:
    """Full weights of the current and the next unit, and full gradients of one."""
    largest = [*sizes.units[:2], 0, 0]
    return 2.0 * largest[0] + largest[1]


def step_bytes(trace: Trace, setting: Setting, micro_batch: int) -> float:
    """The peak of a micro-batch's forward and backward pass, pixels and tokens included."""
    share = 0.5 if setting.precision == "bf16" else 1.0
    alive = trace.fixed + micro_batch * (trace.computed * share + trace.kept)  # [operations]
    if setting.strategy == "single" and not setting.accumulates:
        alive = alive + trace.gradients
    elif setting.strategy != "single":
        alive = alive + np.minimum(trace.gradients, trace.largest_gradient)  # until they are in the buckets
    inputs = trace.sample_input * (1.5 if setting.precision == "bf16" else 1.0)  # autocast copies the pixels
    return float(alive.max(initial=0)) + micro_batch * inputs


def peak_bytes(traces: Mapping[Checkpointing, Trace], sizes: Sizes, setting: Setting, micro_batch: int) -> float:
    """The expected value of `torch.cuda.max_memory_allocated`."""
    copies = sizes.copied / 2 if setting.precision == "bf16" else 0.0
    held = sum(static_bytes(sizes, setting).values())
    return held + copies + step_bytes(traces[setting.checkpointing], setting, micro_batch) + WORKSPACE_BYTES


def card_bytes(allocated: float) -> float:
    """Memory of the card that so much allocated memory takes."""
    return allocated * (1 + FRAGMENTATION) + CONTEXT_BYTES


def largest_micro_batch(
    traces: Mapping[Checkpointing, Trace], sizes: Sizes, setting: Setting, share: int, card: float, least: int = 1
) -> tuple[int, Setting] | None:
    """The largest micro-batch from `least` on that divides a rank's share and fits the card, or None.

    Its setting comes with it: a micro-batch smaller than the share accumulates gradients.
    """
    for micro in (n for n in range(share, least - 1, -1) if share % n == 0):
        accumulating = replace(setting, accumulates=micro < share)
        if card_bytes(peak_bytes(traces, sizes, accumulating, micro)) <= card:
            return micro, accumulating
    return None
