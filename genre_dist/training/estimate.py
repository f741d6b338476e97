"""The cost of a run without starting it: steps, batches, parameters, memory."""

import torch

from genre_dist.config import Batches, Config, derive_batches
from genre_dist.models.levers import choose_compiling
from genre_dist.parallel.gpu import crowded
from genre_dist.parallel.strategies import check_strategy
from genre_dist.planner.memory import WORKSPACE_BYTES, peak_bytes, static_bytes
from genre_dist.planner.options import configured_setting
from genre_dist.planner.plan_report import held, parameter_lines
from genre_dist.planner.planned_model import PlannedModel, meta_model, plan_model
from genre_dist.planner.sizes import gb, mb
from genre_dist.planner.throughput import peak_flops, training_flops
from genre_dist.stream.manifest import load_manifest
from genre_dist.training.experiment import choose_precision, open_stream, settle_missing, total_steps
from genre_dist.training.host_bound import host_bound
from genre_dist.training.loss import training_loss
from genre_dist.training.pretrained_start import going_on


def estimate(config: Config, world_size: int) -> str:
    """The text of `--dry_run`. Raises ValueError as a run would."""
    check_strategy(config, world_size)
    batches = derive_batches(config.data, world_size)
    manifest = load_manifest(config.data.shards)
    config = going_on(settle_missing(config, manifest))
    stream = open_stream(config, manifest, world_size)
    steps = total_steps(config, stream.steps_per_epoch)
    epochs = steps / stream.steps_per_epoch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training_loss(config.loss, manifest, device)  # raises if it does not fit the labels
    precision = choose_precision(config, device)
    planned = plan_model(config, (config.train.activation_checkpointing,), on_gpu=device.type == "cuda")
    lines = [
        f"shards            {manifest.folder}: {stream.reader.index.samples:,} {manifest.declared.samples} to train on",
        f"steps             {steps:,} ({stream.steps_per_epoch:,} an epoch, {epochs:.1f} epochs)",
        f"global batch      {config.data.global_batch} = {world_size} ranks x {batches.accumulation} accumulated x "
        f"micro-batch {batches.micro}",
    ]
    setting = configured_setting(config, world_size, precision, batches.accumulation > 1)
    peak = peak_bytes(planned.traces, planned.sizes, setting, batches.micro)
    lines += [
        *parameter_lines(planned),
        f"memory per rank   {gb(peak)} at the peak, {precision}, {setting.strategy}: "
        f"{held(static_bytes(planned.sizes, setting))}; the rest is activations "
        f"({mb(planned.traces[setting.checkpointing].activations)} a sample in fp32, texts of {planned.tokens} tokens) "
        f"and {mb(WORKSPACE_BYTES)} assumed for kernels",
        "                  what else fits which card: genre-dist plan",
    ]
    if device.type == "cuda":
        compiled = choose_compiling(config, device, steps).wanted
        lines += _gpu_lines(config, batches, planned, 0.0 if compiled else peak_flops(device, precision))
    return "\n".join(lines)


def _gpu_lines(config: Config, batches: Batches, planned: PlannedModel, peak: float) -> list[str]:
    """Warnings about this machine's GPU: other processes fill its memory, or the ranks' shares are too small for it.

    `peak` is the GPU's in FLOP/s; 0 where it is unknown or does not apply, as for compiled networks.
    """
    problem = crowded(torch.device("cuda", torch.cuda.current_device()))
    lines = [f"GPU memory        {problem}"] if problem else []
    read_from_disk = config.train.cache_encodings != "off" and config.why_not_encoded_once is None
    if peak == 0 or not config.model.uses_poster or read_from_disk:
        return lines  # host_bound's figures are for a convolutional network in eager mode
    samples = batches.per_rank if config.data.micro_batch == "auto" else batches.micro
    model = meta_model(config, planned.vocabulary, on_gpu=True)
    flops = training_flops(model, config, torch.device("meta"))
    operations = len(planned.traces[config.train.activation_checkpointing].computed)
    if problem := host_bound(samples, operations, flops, peak):
        larger = "a larger data.global_batch" if samples == batches.per_rank else "a larger data.micro_batch"
        fewer = ", fewer ranks" if config.data.global_batch > batches.per_rank else ""
        lines.append(f"too few samples   {problem}. What helps: {larger}{fewer}, train.compile")
    return lines
