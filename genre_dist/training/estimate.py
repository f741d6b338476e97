"""What a run would cost, without starting it: steps, batches, parameters, memory."""

import torch
from torch import Tensor

from genre_dist.config import Config, derive_batches
from genre_dist.models.classifier import GenreClassifier, count_parameters
from genre_dist.parallel.strategy import check_strategy
from genre_dist.stream.manifest import load_manifest
from genre_dist.training.experiment import build_model, open_stream, total_steps
from genre_dist.training.loss import loss_sum

BYTES_PER_TRAINED = 16  # fp32 weight, gradient and AdamW's two moments
BYTES_PER_FROZEN = 4
TYPICAL_TOKENS = 55  # median overview of the real films, rounded up


def estimate(config: Config, world_size: int) -> str:
    """The text of `--dry_run`. Raises ValueError as a run would."""
    check_strategy(config, world_size)
    batches = derive_batches(config.data, world_size)
    manifest = load_manifest(config.data.shards)
    stream = open_stream(config, manifest, world_size)
    steps = total_steps(config, stream.steps_per_epoch)
    epochs = steps / stream.steps_per_epoch
    model = build_model(config, manifest, load_weights=False)
    lines = [
        f"shards            {manifest.folder}: {stream.reader.index.samples:,} films to train on",
        f"steps             {steps:,} ({stream.steps_per_epoch:,} an epoch, {epochs:.1f} epochs)",
        f"global batch      {config.data.global_batch} = {world_size} ranks x {batches.accumulation} accumulated x "
        f"micro-batch {batches.micro}",
    ]
    trained = frozen = 0
    for part, (part_trained, part_frozen) in count_parameters(model).items():
        lines.append(f"{part:<18}{part_trained:,} parameters trained, {part_frozen:,} frozen")
        trained, frozen = trained + part_trained, frozen + part_frozen
    states = BYTES_PER_TRAINED * trained + BYTES_PER_FROZEN * frozen
    per_sample = activation_bytes(model, config)
    lines += [
        f"memory per rank   {_gb(states + per_sample * batches.micro)} = {_gb(states)} weights, gradients and AdamW's "
        f"states + {batches.micro} x {per_sample / 1e6:.1f} MB activations",
        "                  (fp32, texts of 55 tokens; kernels' workspace and the framework come on top; bf16 about "
        "halves the activations)",
    ]
    return "\n".join(lines)


def activation_bytes(model: GenreClassifier, config: Config) -> int:
    """Bytes one sample keeps for the backward pass in fp32: what autograd saves between batches of one and of two."""
    return _saved_bytes(model, config, 2) - _saved_bytes(model, config, 1)


def _saved_bytes(model: GenreClassifier, config: Config, n: int) -> int:
    """Bytes autograd keeps after a forward pass over n samples, parameters left out, every storage once."""
    size = config.data.image_size
    images = torch.zeros(n, 3, size, size) if config.model.uses_poster else None
    tokens = torch.ones(n, TYPICAL_TOKENS, dtype=torch.long) if config.model.uses_text else None
    lengths = torch.full((n,), TYPICAL_TOKENS) if config.model.uses_text else None
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # held on to, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(images, tokens, lengths)
        loss_sum(logits, torch.zeros_like(logits), torch.ones(n))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
