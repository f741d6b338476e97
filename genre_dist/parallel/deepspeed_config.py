"""DeepSpeed's configuration, derived from the run's; a JSON file may set options that concern DeepSpeed alone."""

import json
from pathlib import Path
from typing import Any

from genre_dist.config import Batches, Config

REDUCE_BUCKET = 50_000_000
"""Elements of a bucket of the gradients' all-reduce, unless a JSON file says otherwise. DeepSpeed's default of 5e8
takes 2 GB of every GPU, whatever the model; 200 MB keep a link of 400 Gb/s busy for 4 ms."""
FROM_CONFIG = {
    "train_batch_size": "data.global_batch",
    "train_micro_batch_size_per_gpu": "data.micro_batch",
    "gradient_accumulation_steps": "data.global_batch and data.micro_batch",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "zero_optimization.stage": "parallel.strategy",
    "zero_optimization.offload_optimizer": "parallel.offload_optimizer",
}
"""DeepSpeed's name of a setting -> the configuration's, from which it follows. A JSON file must not repeat it."""
DEEPSPEED_ONLY = (
    "zero_optimization",
    "communication_data_type",
    "seq_parallel_communication_data_type",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "aio",
)
"""Sections that a file may have: none of them changes results, except for rounding in communication."""


def engine_config(config: Config, batches: Batches, precision: str, pin_memory: bool) -> dict[str, Any]:
    """The complete configuration of DeepSpeed's engine.

    Raises ValueError if `parallel.deepspeed_config` is unreadable or has a setting that it may not have.
    """
    parallel = config.parallel
    zero: dict[str, Any] = {
        "stage": int(parallel.strategy.removeprefix("zero")),
        "overlap_comm": False,  # its streams race with gradients that accumulate over micro-batches
        "memory_efficient_linear": False,
        "reduce_bucket_size": REDUCE_BUCKET,
    }
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin_memory}
    settings: dict[str, Any] = {
        "train_batch_size": config.data.global_batch,
        "train_micro_batch_size_per_gpu": batches.micro,
        "gradient_accumulation_steps": batches.accumulation,
        "gradient_clipping": config.optim.clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW runs on the CPU too, without compilation
        "steps_per_print": None,
    }
    if precision == "bf16":
        # weights, BatchNorm's statistics and sums of gradients stay fp32: no module is "safe"
        safe: list[str] = []
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": safe}
    overrides = read_overrides(config)
    return settings | overrides | {"zero_optimization": zero | overrides.get("zero_optimization", {})}


def bucket_bytes(config: Config) -> int:
    """Memory of DeepSpeed's bucket of fp32 gradients; all stages allocate all of it.

    Raises ValueError as `read_overrides` does.
    """
    zero = read_overrides(config).get("zero_optimization", {})
    return 4 * int(zero.get("reduce_bucket_size", REDUCE_BUCKET))


def read_overrides(config: Config) -> dict[str, Any]:
    """The settings in `parallel.deepspeed_config`, if it names a file. Raises ValueError that names file and key."""
    path = config.parallel.deepspeed_config
    if path is None:
        return {}
    where = f"parallel.deepspeed_config={path}"
    try:
        overrides = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(overrides, dict) or not isinstance(overrides.get("zero_optimization", {}), dict):
        raise ValueError(f"{where}: expected an object of DeepSpeed settings")
    for key in (*overrides, *(f"zero_optimization.{key}" for key in overrides.get("zero_optimization", {}))):
        if key in FROM_CONFIG:
            raise ValueError(f"{where}: {key} follows from {FROM_CONFIG[key]}; set that and leave it out of the file")
        if key not in DEEPSPEED_ONLY and "." not in key:
            raise ValueError(
                f"{where}: {key} would change more than how the work is spread; allowed: {', '.join(DEEPSPEED_ONLY)}"
            )
    return overrides
