"""The shortest time of a training step on a card: bytes over bandwidth, operations over peak. Computed, not measured.

A roofline (Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785): no operation is faster than
its bytes at the memory's bandwidth, nor than its products at the peak. REACHED is the share of it that real kernels are
assumed to reach.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import torch

from genre_dist.config import Config, derive_batches
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.text import TextEncoder
from genre_dist.planner.gpu_specs import GpuSpec
from genre_dist.planner.operations import HEADS, PIXELS, Operation, text_length, trace_operations
from genre_dist.planner.options import planned_micro_batch
from genre_dist.planner.planned_model import find_vocabulary, meta_model
from genre_dist.planner.sizes import TYPICAL_TOKENS
from genre_dist.planner.throughput import recurrent_flops, training_flops
from genre_dist.stream.manifest import load_manifest

REACHED = (0.4, 0.75)
"""Assumed: the share of its roofline that training reaches. ResNet-50 as NVIDIA published it on one GPU
(DeepLearningExamples, PyTorch 21.03) against the roofline here: A100 2,470 of 3,700 images/s in half precision, 0.67,
and 938 of 1,860 in TF32, 0.50; V100 1,200 of 1,600 in half precision, 0.75, and 367 of 430 in fp32, 0.85, where
products are the limit. The lower end is for BatchNorm in bf16, which is not cuDNN's, and for newer cards, which are
harder to fill."""
RECURRENT_STEP_SECONDS = 10e-6
"""Assumed: a time step of a recurrent layer, forward or backward. Two kernels wait for one another (the product with
the previous state, then the gates), about 5 us each: launch and memory latency, not work. Both directions run side by
side; a layer waits for both directions of the one below."""
OPERATION_SECONDS = 20e-6
"""Assumed: host time of an operation in Python, autograd and its launch. If that exceeds the GPU's work, the GPU waits;
the times at best leave it out, as with CUDA graphs."""
PACKED_SIZE = 256
"""Assumed if the shards cannot be read: side of the packed images, the default of `genre-dist pack`."""
BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel's default: gradients are reduced in such buckets, the last one after the backward pass."""
ADAMW_BYTES = {"adamw": 28, "adamw8bit": 16}
"""A parameter's update in one kernel: weight, gradient and two averages read, weight and averages written."""
CLIP_BYTES = 12
"""A parameter's gradient read for the norm, read and written for the scaling."""
ACCUMULATE_BYTES = 12
"""A parameter's gradient added to that of the micro-batches before."""


@dataclass
class OperationTime:
    """Work of one kind and its time at best."""

    kind: str
    flops: float
    bytes: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Way:
    """The times of a step in eager mode, or with the image network's blocks compiled."""

    name: str
    works: tuple[OperationTime, ...]
    """Work of one micro-batch by kind: pixels, image network, heads."""
    launches: int
    """Operations that the host starts in a micro-batch."""
    passes: float
    """Seconds of a micro-batch: pixels, image network or text encoder (the longer one), heads."""
    exposed: float
    """Seconds of the exchange of gradients that the backward pass does not hide."""
    step: float
    """Seconds of the step at best."""
    likely: tuple[float, float]
    """Seconds at REACHED of the roofline, or the host's time for the launches if longer: shortest, longest."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A step of a configuration on a number of equal cards."""

    card: GpuSpec
    ranks: int
    precision: str
    samples: int
    """Samples of a step, over all ranks."""
    micro_batch: int
    accumulation: int
    planned: bool
    """Whether the micro-batch is the planner's for the memory."""
    tokens: int
    """Steps of the longest text, or tokens of each for a transformer; 0 without a text encoder."""
    recurrent: tuple[OperationTime, OperationTime] | None
    """Forward and backward pass of a recurrent text encoder for a micro-batch."""
    copy: OperationTime
    """Copy of a micro-batch's images to the card, parallel to the passes."""
    update: OperationTime
    """Accumulation and clipping of gradients, optimizer."""
    gradient_bytes: float
    all_reduce: float
    """Seconds of a ring's exchange of all gradients."""
    flops: float
    """FLOP of a sample, as training counts them for its MFU."""
    ways: tuple[Way, ...]

    def mfu(self, seconds: float) -> float:
        """Share of the cards' peak that a step of this time uses."""
        peak = self.card.flops("bf16" if self.precision == "bf16" else "tf32")
        return self.flops * self.samples / seconds / (peak * self.ranks)


def time_step(config: Config, card: GpuSpec, ranks: int, micro_batch: int | None, memory: int) -> Timing:
    """Time a step of a configuration on a card; without a micro-batch, with the planner's for the memory in bytes.

    Raises ValueError for a batch that does not divide, and if the model cannot be traced.
    """
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if card.has_bf16 else "fp32"
    planned = micro_batch is None
    micro = planned_micro_batch(config, memory, ranks, precision) if micro_batch is None else micro_batch
    batches = derive_batches(replace(config.data, micro_batch=micro), ranks)
    vocabulary, packed_size = find_vocabulary(config), _packed_size(config)
    model = meta_model(config, vocabulary, on_gpu=True)
    text, tokens = next(iter(model.text_encoders.values()), None), 0
    if text is not None:
        tokens = config.data.max_tokens if isinstance(text, TextEncoder) else text_length(config)
    copy = micro * packed_size**2 * 3 * len(model.image_encoders)
    gradients = _trained(model) * (2 if config.parallel.compress_gradients else 4)
    operations = trace_operations(config, vocabulary, precision, micro, packed_size)
    timing = Timing(
        card=card,
        ranks=ranks,
        precision=precision,
        samples=config.data.global_batch,
        micro_batch=micro,
        accumulation=batches.accumulation,
        planned=planned,
        tokens=tokens,
        recurrent=_recurrent(text, tokens, micro, card) if isinstance(text, TextEncoder) else None,
        copy=OperationTime("images to the card", 0, copy, copy / (card.host / 2 * 1e9)),
        update=_update(config, _trained(model), batches.accumulation, card),
        gradient_bytes=gradients,
        all_reduce=ring_seconds(gradients, ranks, card),
        flops=training_flops(model, config, torch.device("meta")),
        ways=(),
    )
    return replace(timing, ways=(_way("eager", operations, timing), _way("blocks compiled", operations, timing)))


def ring_seconds(size: float, ranks: int, card: GpuSpec) -> float:
    """Seconds of an all-reduce: in a ring each rank sends 2 (N - 1) / N of the bytes, in one direction of its link."""
    return 2 * (ranks - 1) / ranks * size / (card.link / 2 * 1e9)


def _way(name: str, operations: list[Operation], timing: Timing) -> Way:
    compiled = name != "eager"
    works: dict[str, OperationTime] = {}
    spent: dict[tuple[str, bool], float] = defaultdict(float)  # of pixels, network and heads, forward and backward
    for operation in operations:
        moved = operation.compiled if compiled else operation.eager
        seconds = at_best(operation.flops, moved, operation.precision, timing.card)
        work = works.setdefault(operation.kind, OperationTime(operation.kind, 0, 0, 0))
        work.flops, work.bytes, work.seconds = work.flops + operation.flops, work.bytes + moved, work.seconds + seconds
        spent[work.kind if work.kind in (PIXELS, HEADS) else "network", operation.backward] += seconds
    text = (0.0, 0.0) if timing.recurrent is None else tuple(work.seconds for work in timing.recurrent)
    forward = spent[PIXELS, False] + max(spent["network", False], text[0]) + spent[HEADS, False]
    backward = spent[HEADS, True] + max(spent["network", True], text[1])
    passes = max(forward + backward, timing.copy.seconds)
    last_bucket = timing.all_reduce * min(1, BUCKET_BYTES / timing.gradient_bytes)
    exposed = max(timing.all_reduce - backward, last_bucket)
    step = timing.accumulation * passes + timing.update.seconds + exposed
    launches = sum(not (compiled and operation.joined) for operation in operations)
    host = timing.accumulation * launches * OPERATION_SECONDS
    return Way(
        name=name,
        works=tuple(works.values()),
        launches=launches,
        passes=passes,
        exposed=exposed,
        step=step,
        likely=(max(step / max(REACHED), host), max(step / min(REACHED), host)),
    )


def at_best(flops: float, size: float, precision: str, card: GpuSpec) -> float:
    """Seconds of an operation by the roofline."""
    return max(size / (card.bandwidth * 1e9), flops / card.flops(precision))


def _recurrent(text: TextEncoder, longest: int, samples: int, card: GpuSpec) -> tuple[OperationTime, OperationTime]:
    """Forward and backward pass: the longest text's steps one after another, or all texts' products at the peak.

    cuDNN computes it in TF32, under bf16 autocast too.
    """
    latency = longest * text.rnn.num_layers * RECURRENT_STEP_SECONDS
    works = []
    for name, flops in zip(("forward", "backward"), recurrent_flops(text), strict=True):
        products = samples * min(TYPICAL_TOKENS, longest) * flops
        seconds = max(latency, products / card.flops("tf32")) if flops else 0.0
        works.append(OperationTime(f"recurrent network, {name}", products, 0, seconds))
    return works[0], works[1]


def _update(config: Config, parameters: int, accumulation: int, card: GpuSpec) -> OperationTime:
    per_parameter = ADAMW_BYTES[config.optim.optimizer] + CLIP_BYTES + ACCUMULATE_BYTES * (accumulation - 1)
    size = parameters * per_parameter
    return OperationTime("optimizer, clipping", 0, size, at_best(0, size, "fp32", card))


def _trained(model: GenreClassifier) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _packed_size(config: Config) -> int:
    try:
        return int(load_manifest(config.data.shards).image.get("size") or PACKED_SIZE)
    except (ValueError, OSError):
        return PACKED_SIZE
