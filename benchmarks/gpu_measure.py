"""A plan against the real peak: the step of this very configuration on a CUDA GPU (`genre-dist plan ... --measure`)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from genre_dist.config import Config
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.levers import pull_levers
from genre_dist.parallel.strategies import make_strategy
from genre_dist.parallel.world import World
from genre_dist.planner.memory import Checkpointing, Setting, peak_bytes
from genre_dist.planner.options import MemoryPlan
from genre_dist.planner.planned_model import PlannedModel, Vocabulary
from genre_dist.planner.sizes import gb
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.training.experiment import autocast_for
from genre_dist.training.loss import loss_sum
from genre_dist.training.optimizer import make_optimizer
from genre_dist.training.step import TrainStep, agree


def print_measured(plan: MemoryPlan) -> None:
    """Measure the plan's best option on one GPU. Raises ValueError without CUDA, or where nothing fits."""
    if not torch.cuda.is_available():
        raise ValueError("--measure needs a CUDA GPU, and there is none here; the plan above is computed")
    if plan.best is None:
        raise ValueError("--measure: nothing in the plan fits, so there is nothing to measure")
    option, planned = plan.best, plan.planned
    setting = replace(option.setting, strategy="single", ranks=1, offload=False)
    expected = peak_bytes(planned.traces, planned.sizes, setting, option.micro_batch)
    found = measured_peak(plan.config, planned, setting, option.micro_batch)
    print(
        f"measured on one {torch.cuda.get_device_name()}: {gb(found)} allocated at the peak of "
        f"{setting.precision}, checkpointing {setting.checkpointing}, micro-batches of {option.micro_batch}; planned "
        f"{gb(expected)}, {expected / found - 1:+.1%}"
    )


def measured_peak(config: Config, planned: PlannedModel, setting: Setting, micro_batch: int) -> int:
    """`torch.cuda.max_memory_allocated` over a training step after one of warm-up, on one GPU."""
    world = World(0, 1, torch.device("cuda", torch.cuda.current_device()))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(world.device)
    step = make_step(config, planned.vocabulary, setting.checkpointing, setting.precision, world)
    batch = invented_batch(config, planned.vocabulary, micro_batch, planned.tokens)
    micro_batches = [batch] * (2 if setting.accumulates else 1)
    step(micro_batches)
    torch.cuda.synchronize(world.device)
    torch.cuda.reset_peak_memory_stats(world.device)
    step(micro_batches)
    torch.cuda.synchronize(world.device)
    return torch.cuda.max_memory_allocated(world.device) - before


def make_step(
    config: Config, vocabulary: Vocabulary, checkpointing: Checkpointing, precision: str, world: World
) -> Callable[[list[Batch]], None]:
    """A function that takes one training step of some micro-batches, with a new model on the world's device."""
    vectors = None if vocabulary.dim is None else np.zeros((vocabulary.words, vocabulary.dim), np.float32)
    size = config.data.image_size
    model = GenreClassifier(config.model, vocabulary.genres, size, vocabulary.words, vectors, load_weights=False)
    model = cast(GenreClassifier, model.to(world.device))
    pull_levers(model, replace(config.train, activation_checkpointing=checkpointing), world.device)
    model.train()
    strategy = make_strategy(config, model, partial(make_optimizer, config=config), world, precision)
    autocast = autocast_for(precision, world.device)
    prepare = partial(to_device, device=world.device, pixels=whole_pixels(config.data))

    train_step = TrainStep(strategy, world, loss_sum, autocast, config.optim.clip_norm)

    def step(micro_batches: list[Batch]) -> None:
        train_step.take(micro_batches, prepare, agree(world, micro_batches, stop=False, save=False))

    return step


def invented_batch(config: Config, vocabulary: Vocabulary, samples: int, tokens: int) -> Batch:
    """A batch of noise in the shape of real samples."""
    draw = np.random.default_rng(0)
    size = config.data.image_size
    arrays: dict[str, Any] = {}
    if config.model.uses_poster:
        arrays["poster.images"] = draw.integers(0, 256, (samples, size, size, 3), np.uint8)
    if config.model.uses_text:
        arrays["text.tokens"] = draw.integers(2, vocabulary.words, (samples, tokens), np.int32)
        arrays["text.lengths"] = np.full(samples, tokens, np.int64)
    return Batch(
        ids=np.arange(samples, dtype=np.int64),
        labels=(draw.random((samples, vocabulary.genres)) < 0.1).astype(np.float32),
        weights=np.ones(samples, np.float32),
        arrays=arrays,
    )
