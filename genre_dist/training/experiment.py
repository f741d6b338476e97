"""From a configuration and the ranks to an experiment: data, model, strategy and length, before the first step."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from genre_dist.config import Config, derive_batches
from genre_dist.config.run import CONFIG, is_of_a_run
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.levers import Choice, choose_compiling, choose_cuda_graph, pull_levers, without_effect
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.parallel.strategies import check_strategy, make_strategy, strategy_name
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.world import LONGEST_ALLOWED, World
from genre_dist.planner.throughput import peak_flops, training_flops
from genre_dist.schema import plural
from genre_dist.stream.batch import Batch
from genre_dist.stream.cache import BlockCache, block_cache
from genre_dist.stream.device_feed import DeviceFeed, Size, device_feed, dropping, to_device, training_pixels
from genre_dist.stream.loader import TrainStream
from genre_dist.stream.manifest import Manifest, TarManifest, load_manifest
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.sample import PADDING
from genre_dist.stream.words import load_vectors
from genre_dist.tars.sample_reader import reader_type
from genre_dist.training.ema import Average, TrainState
from genre_dist.training.evaluation import Evaluator
from genre_dist.training.freezing import freeze, frozen_at, thaw_all_that_ever_trains
from genre_dist.training.loss import training_loss
from genre_dist.training.model_files import METADATA, WEIGHTS, check_weights, read_metadata, read_vocabulary
from genre_dist.training.optimizer import make_optimizer
from genre_dist.training.pretrained_start import check_tokenizer, going_on, has_steps, text_lines
from genre_dist.training.ranks import say
from genre_dist.training.step import StepResult, TrainStep
from genre_dist.training.views import check_views


class Compute(NamedTuple):
    """Precision, micro-batch, compilation and CUDA graphs of an experiment on these ranks."""

    precision: str
    """fp32 or bf16."""
    micro_batch: int
    """Samples of a rank that are computed together."""
    splits: bool = False
    """Whether micro-batches may be halved during training."""
    compiling: Choice = Choice(False)
    graphed: Choice = Choice(False)
    flops_per_sample: float = 0.0
    """Of a training step; 0 where the device's peak is unknown."""


class Experiment(NamedTuple):
    """A configuration's data, model and training on these ranks."""

    config: Config
    world: World
    manifest: Manifest
    stream: TrainStream
    model: GenreClassifier
    strategy: Strategy
    average: Average | None
    train_step: TrainStep
    compute: Compute
    encodings: Manifest | None = None
    """Shards of encodings, read instead of the manifest's where the encoders are frozen."""

    @property
    def total_steps(self) -> int:
        return total_steps(self.config, self.stream.steps_per_epoch)

    @property
    def state(self) -> TrainState:
        return TrainState(self.strategy, self.average)

    def training_size(self, samples: int) -> Size | None:
        """The only size of micro-batches in training, if the model is compiled."""
        poster = self.config.model.poster
        return Size(samples, poster.frozen or poster.batch_norm == "eval") if self.compute.compiling.wanted else None

    def epoch(self, step: int) -> int:
        """The epoch of a step, counted from 0."""
        return step // self.stream.steps_per_epoch

    def take(self, counts: Tensor, step: int, micro_batches: list[Batch], samples: int, **options: Any) -> StepResult:
        """Take a step of micro-batches of up to so many samples; see `TrainStep.take`."""
        seed, epoch = self.config.run.seed, self.epoch(step)
        pixels, hidden = training_pixels(self.config.data, seed, epoch), None
        if self.config.model.learns_missing:
            hidden = dropping(self.config.train.drop_field, seed, epoch)
        size = self.training_size(samples)
        prepare = partial(to_device, device=self.world.device, pixels=pixels, size=size, hidden=hidden)
        return self.train_step.take(micro_batches, prepare, counts, **options)

    def freeze(self, step: int) -> None:
        """Freeze the parts of the model that are frozen in a step, counted from 0."""
        config = self.config.model
        if config.unfreezes and freeze(self.model, frozen_at(config, step, self.stream.steps_per_epoch)):
            self.strategy.trained_changed()

    def allow_compiling(self, message: str = "") -> None:
        """If the model is compiled, give the ranks time for it before one counts as hanging, and print the message."""
        if self.compute.compiling.wanted:
            if message:
                say(self.world, message)
            self.world.allow(LONGEST_ALLOWED)

    @property
    def evaluator(self) -> Evaluator:
        """In evaluation samples do not affect each other, so a compiled model's batches may be filled up."""
        size = Size(self.compute.micro_batch, fill=True) if self.compute.compiling.wanted else None
        return Evaluator(self.model, self.config, self.world, self.train_step.autocast, self.compute.micro_batch, size)


def open_split(
    config: Config, manifest: Manifest, split: str, decode: bool = True, cache: BlockCache | None = None
) -> ShardReader:
    """A reader of the samples of a split that have what the model needs."""
    members = config.model.members(manifest.declared)
    if isinstance(manifest, TarManifest) and config.data.decode == "gpu":
        raise ValueError(
            f"data.decode=gpu: the images of the tars that {manifest.folder} lists have any size and kind, so the "
            "reader processes decode them; use auto or cpu, or pack them"
        )
    return reader_type(manifest)(
        manifest, split, members, config.data.max_tokens, decode, cache, any_of=config.model.learns_missing
    )


def open_stream(
    config: Config, manifest: Manifest, world_size: int, rank: int = 0, feed: DeviceFeed | None = None
) -> TrainStream:
    """The training batches of one rank."""
    data = config.data
    batches = derive_batches(data, world_size)
    cache = block_cache(data.cache_dir, data.cache_gb)
    decode = feed is None or not feed.decodes
    reader = open_split(config, manifest, "train", decode, cache)
    return TrainStream(
        reader,
        global_batch=data.global_batch,
        micro_batch=batches.micro,
        seed=config.run.seed,
        world=world_size,
        rank=rank,
        block=data.block,
        last_batch=data.last_batch,
        by_length=data.by_length,
        workers=data.workers,
        prefetch=data.prefetch,
        feed=feed,
    )


def build_model(config: Config, manifest: Manifest, load_weights: bool = True) -> GenreClassifier:
    """The configuration's model for the labels and words of these shards; the same seed gives the same model.

    Raises ValueError for weights that do not fit.
    """
    if load_weights:
        _check_starting_weights(config, manifest)
        check_tokenizer(config, manifest)
    torch.manual_seed(config.run.seed)
    return GenreClassifier(
        config.model,
        len(manifest.genres),
        config.data.image_size,
        manifest.text["words"],
        load_vectors(manifest.folder, manifest.text),
        load_weights,
        manifest.declared,
        manifest.text.get("padding", PADDING),
    )


def _check_starting_weights(config: Config, manifest: Manifest) -> None:
    """Raise ValueError for weights of another run that are damaged, and for a text encoder's that fit by shape but had
    another pooling or other words."""
    from genre_dist.config.files import load_config

    text, poster = config.model.text, config.model.poster
    files = (text.weights_file, poster.weights)
    runs = {file: Path(file).parent for file in files if file and Path(file).name == WEIGHTS}
    metadata = {file: read_metadata(run) for file, run in runs.items() if (run / METADATA).is_file()}
    for file, one in metadata.items():
        check_weights(runs[file], one)
    source, words = metadata.get(text.weights or ""), manifest.text["vocabulary_sha256"]
    if source is not None and source.text["vocabulary_sha256"] != words:
        raise ValueError(
            f"model.text.weights={text.weights} was trained with another vocabulary than that of {manifest.folder}: "
            "its words would be others; pack those shards with the same catalogue and options"
        )
    beside = Path(text.weights_file).with_name("config.yaml") if text.weights_file else None
    if beside and beside.is_file() and (pooling := load_config(beside).model.text.pooling) != text.pooling:
        raise ValueError(
            f"model.text.weights={text.weights} was trained with model.text.pooling={pooling}, not {text.pooling}: "
            f"pass --model.text.pooling {pooling}"
        )


def _build_on_all(config: Config, manifest: Manifest, world: World) -> GenreClassifier:
    """Build the model on every rank; only rank 0 reads weights, and sends them to the others when training starts.

    No rank reads any for a run that has steps: its checkpoint holds them. If rank 0 cannot read its file, all ranks
    fail together: none may wait for the others.
    """
    model, problem = None, None
    goes_on = world.broadcast(has_steps(config))
    try:
        if world.is_first:  # another vocabulary would give the token ids other words
            read_vocabulary(manifest)
        model = build_model(going_on(config), manifest, load_weights=world.is_first and not goes_on)
    except ValueError as error:
        problem = str(error)
    problem = world.broadcast(problem) or problem
    if model is None or problem:
        raise ValueError(problem)
    return model


def total_steps(config: Config, steps_per_epoch: int) -> int:
    return config.train.steps or config.train.epochs * steps_per_epoch


def choose_precision(config: Config, device: torch.device, trained_elsewhere: bool = False) -> str:
    """fp32 or bf16, with `auto` resolved for the device.

    Raises ValueError for bf16 on a GPU without it; there a run that was trained elsewhere is evaluated in fp32.
    """
    asked, on_gpu = config.train.precision, device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and on_gpu and not has_bf16:
        if trained_elsewhere:
            return "fp32"
        raise ValueError(
            f"train.precision=bf16: a {torch.cuda.get_device_name(device)} has no bf16 (sm_80 and later have it); set "
            "it to fp32, or to auto, which takes fp32 there"
        )
    if asked != "auto":
        return asked
    return "bf16" if has_bf16 else "fp32"


def agreed_precision(config: Config, world: World) -> str:
    """The precision of all ranks: fp32 if the GPU of one of them has no bf16."""
    return "fp32" if world.any(choose_precision(config, world.device) == "fp32") else "bf16"


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The context of every forward pass: bf16 autocast, or nothing for fp32."""
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16")


def _recorded_missing(file: Path) -> str | None:
    """`model.missing` of the run whose config.yaml this is (`leave_out` before there was one); None without a run."""
    if not is_of_a_run(file):
        return None
    written = yaml.safe_load(file.read_bytes())
    model = written.get("model") if isinstance(written, dict) else None
    return str(model.get("missing", "leave_out")) if isinstance(model, dict) else "leave_out"


def settle_missing(config: Config, manifest: Manifest) -> Config:
    """Resolve `model.missing=auto`: as the run in the folder began, else by whether a training sample lacks a field.

    Runs of versions without the setting left such samples out.
    """
    if config.model.missing != "auto":
        return config
    members = config.model.members(manifest.declared)
    recorded = Path(config.run.dir) / CONFIG
    if recorded.is_file() and not config.run.overwrite and (missing := _recorded_missing(recorded)):
        learn = missing == "learn"
    else:
        lacking = any(0 < len(names) < len(members) for names in manifest.patterns("train", members))
        learn = lacking or config.train.drop_field > 0
    return replace(config, model=replace(config.model, missing="learn" if learn else "leave_out"))


def set_up(config: Config, world: World, splits: bool = False) -> Experiment:
    """Make the experiment of a configuration. Raises ValueError for settings that do not fit together.

    `splits`: micro-batches may be halved during training.
    """
    check_strategy(config, world.size)
    check_views(config)
    batches = derive_batches(config.data, world.size)
    manifest = load_manifest(config.data.shards)
    config = world.broadcast(settle_missing(config, manifest))
    loss = training_loss(config.loss, manifest, world.device)  # here, as it may not fit the labels
    stream = open_stream(config, manifest, world.size, world.rank, device_feed(world.device, config.data.decode))
    model = _build_on_all(config, manifest, world).to(world.device)
    precision = agreed_precision(config, world)
    # counted before the model is sharded: a forward pass on one rank would wait for the others for ever
    known = peak_flops(world.device, precision) > 0
    flops = training_flops(model, config, world.device) if known else 0.0
    steps = total_steps(config, stream.steps_per_epoch)
    compiling = choose_compiling(config, world.device, steps)
    graphed = choose_cuda_graph(config, world.device, strategy_name(config, world.size))
    train = replace(config.train, compile=compiling.wanted, cuda_graph=graphed.wanted)
    pull_levers(model, train, world.device)
    if config.model.unfreezes:
        thaw_all_that_ever_trains(model, config.model)
    strategy = make_strategy(config, model, partial(make_optimizer, config=config), world, precision, splits)
    decay = config.train.ema_decay
    average = None if decay is None else Average(strategy.model, decay, world)
    autocast = autocast_for(precision, world.device)
    train_step = TrainStep(strategy, world, loss, autocast, config.optim.clip_norm)
    compute = Compute(precision, batches.micro, splits, compiling, graphed, flops)
    return Experiment(config, world, manifest, stream, model, strategy, average, train_step, compute)


def summary(experiment: Experiment) -> str:
    config, stream = experiment.config, experiment.stream
    members, samples = config.model.members(experiment.manifest.declared), experiment.manifest.declared.samples
    left_out = experiment.manifest.samples("train") - stream.reader.index.samples
    learns = config.model.learns_missing
    lines = [
        f"training {config.run.dir}: {stream.reader.index.samples:,} {samples} with "
        + (" or " if learns else " and ").join(members)
        + (f" ({left_out:,} of the split lack {'all' if learns else 'one'} and are left out)" if left_out else ""),
        f"{experiment.total_steps:,} steps of {config.data.global_batch} {samples} ({stream.steps_per_epoch:,} an "
        f"epoch) on {experiment.world.size} x {experiment.world.device.type}, {experiment.compute.precision}, "
        f"micro-batches of {experiment.compute.micro_batch}",
    ]
    if learns:
        patterns = experiment.manifest.patterns("train", members).items()
        counts = [f"{count:,} with {' and '.join(names)}" for names, count in patterns if 0 < len(names) < len(members)]
        lines.append(
            f"a learned vector stands for a missing field: {', '.join(counts) or f'all {samples} have every field'}"
            + (f"; {config.train.drop_field:.0%} are hidden at random" if config.train.drop_field else "")
        )
    texts = experiment.model.text_encoders.items()
    lines += text_lines(config, {part: text for part, text in texts if isinstance(text, PretrainedText)}, stream.reader)
    for part, encoder in experiment.model.image_encoders.items():
        lines.append(f"{part} encoder {config.model.poster.arch}, starting weights: {encoder.weights_used}")
    compute = experiment.compute
    lines += [_computed_in(experiment), *filter(None, [compute.compiling.why, compute.graphed.why])]
    return "\n".join(lines + without_effect(config.train, experiment.world.device))


def _computed_in(experiment: Experiment) -> str:
    """The precision of each part's computation; weights, their updates and the loss are always fp32."""
    tf32 = experiment.world.device.type == "cuda" and torch.backends.cudnn.allow_tf32
    plain = "TF32" if tf32 else "fp32"  # torch's default for convolutions and recurrent kernels
    precision = experiment.compute.precision
    cast, texts = precision if precision == "bf16" else plain, list(experiment.model.text_encoders.values())
    parts = {
        "texts": (bool(texts), cast if any(isinstance(text, PretrainedText) for text in texts) else plain),
        plural(experiment.manifest.declared.image): (bool(experiment.model.image_encoders), cast),
        "heads": (True, precision),
    }
    listed = ", ".join(f"{name} in {kind}" for name, (there, kind) in parts.items() if there)
    return f"computes {listed}; weights, statistics and loss in fp32"
