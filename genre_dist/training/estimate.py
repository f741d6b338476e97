"""What a run would cost, without starting it: steps, batches, parameters, memory."""

from typing import cast

import torch

from genre_dist.config import Config, derive_batches
from genre_dist.parallel.strategy import check_strategy, strategy_name
from genre_dist.planner.memory import WORKSPACE_BYTES, Setting, Strategy, peak_bytes, static_bytes
from genre_dist.planner.model import plan_model
from genre_dist.planner.sizes import gb, mb
from genre_dist.stream.manifest import load_manifest
from genre_dist.training.experiment import choose_precision, open_stream, total_steps


def estimate(config: Config, world_size: int) -> str:
    """The text of `--dry_run`. Raises ValueError as a run would."""
    check_strategy(config, world_size)
    batches = derive_batches(config.data, world_size)
    manifest = load_manifest(config.data.shards)
    stream = open_stream(config, manifest, world_size)
    steps = total_steps(config, stream.steps_per_epoch)
    epochs = steps / stream.steps_per_epoch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(config, device)
    planned = plan_model(config, (config.train.activation_checkpointing,), on_gpu=device.type == "cuda")
    lines = [
        f"shards            {manifest.folder}: {stream.reader.index.samples:,} films to train on",
        f"steps             {steps:,} ({stream.steps_per_epoch:,} an epoch, {epochs:.1f} epochs)",
        f"global batch      {config.data.global_batch} = {world_size} ranks x {batches.accumulation} accumulated x "
        f"micro-batch {batches.micro}",
    ]
    for part, (trained, frozen) in planned.parameters.items():
        lines.append(f"{part:<18}{trained:,} parameters trained, {frozen:,} frozen")
    strategy = strategy_name(config, world_size)
    setting = Setting(
        strategy=cast(Strategy, strategy),
        ranks=world_size,
        precision="bf16" if precision == "bf16" else "fp32",
        checkpointing=config.train.activation_checkpointing,
        offload=config.parallel.offload_optimizer,
        accumulates=batches.accumulation > 1,
    )
    peak = peak_bytes(planned.traces, planned.sizes, setting, batches.micro)
    held = ", ".join(f"{name} {gb(size)}" for name, size in static_bytes(planned.sizes, setting).items() if size)
    lines += [
        f"memory per rank   {gb(peak)} at the peak, {precision}, {strategy}: {held}; the rest is activations "
        f"({mb(planned.traces[setting.checkpointing].activations)} a sample in fp32, texts of {planned.tokens} tokens) "
        f"and {mb(WORKSPACE_BYTES)} assumed for kernels",
        "                  what else fits which card: genre-dist plan",
    ]
    return "\n".join(lines)
