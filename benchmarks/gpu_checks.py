"""Sections of gpu.py that ask whether what a GPU computes is right, before how fast."""

import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row
from gpu_bench import Bench, study_config, tf32
from gpu_loop import loop_config, train
from gpu_measure import invented_batch, make_step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genre_dist.config import Config, OptimConfig, ParallelConfig, PosterConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.parallel.world import World, start_world, stop_world
from genre_dist.stream.batch import Batch
from genre_dist.stream.decode import decode_jpeg
from genre_dist.stream.device_feed import FieldInput
from genre_dist.stream.images import decode_images
from genre_dist.training.experiment import autocast_for
from genre_dist.training.loss import loss_sum

GOAL_GRADIENTS = 0.1
"""bf16 keeps 8 bits, so a sum of many products is off by a few per cent; fp16 without scaling loses 28 % and more."""
GOAL_LOSSES = 1e-3
"""Of the same steps in another order of computing; other samples or lost optimizer states show in the second digit."""
GOAL_PIXELS = 2.0
"""Of 255, on the mean: libjpeg interpolates colours, nvJPEG repeats them, which is off by 0.4 to 1.1 on posters."""


class HalfOperations(TorchDispatchMode):
    """Counts the operations that read or write fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.dtype == torch.float16:
                self.counts[str(func)] += 1
                break
        return result


def precision(bench: Bench) -> Iterator[Row]:
    """No fp16 anywhere in a step in bf16, and the text's gradients against those in fp32."""
    config = bench.config()
    step = make_step(config, bench.words, "none", "bf16", bench.world)
    with HalfOperations() as half:
        step([bench.batch(config, 2 if bench.quick else 16)])
    found = sum(half.counts.values())
    yield Row(
        claim="operations in fp16 in a step in bf16",
        value=found,
        unit="operations",
        goal="0",
        holds=found == 0,
        spread=", ".join(name for name, _ in half.counts.most_common(3)),
    )
    bench.free()
    with tf32(False):
        exact = text_gradients(bench, "fp32")
    rounded = text_gradients(bench, "bf16")
    for layer, gradient in exact.items():
        off = float((rounded[layer] - gradient).norm() / gradient.norm())
        yield below(f"text gradients of layer {layer}, bf16 against fp32", off, "relative error", GOAL_GRADIENTS)


def text_gradients(bench: Bench, kind: str) -> dict[int, Tensor]:
    """The gradients of each recurrent layer's weights, as one vector each, for texts of 15 to 60 words."""
    samples, draw = 8 if bench.quick else 128, np.random.default_rng(0)
    config = bench.config()
    config = replace(config, model=replace(config.model, poster=PosterConfig(arch="none")))
    batch = invented_batch(config, bench.words, samples, 60)
    vectors = draw.normal(0, 0.4, (bench.words.words, bench.words.dim or 1)).astype(np.float32)
    torch.manual_seed(0)
    model = GenreClassifier(config.model, bench.words.genres, 32, bench.words.words, vectors).to(bench.device)
    tokens, labels = (torch.as_tensor(part).to(bench.device) for part in (batch.tokens, batch.labels))
    text = FieldInput(tokens.long(), draw.integers(15, 61, samples))
    with autocast_for(kind, bench.device)():
        logits = model({"text": text})
    (loss_sum(logits, labels, torch.ones(samples, device=bench.device)) / samples).backward()
    layers: dict[int, list[Tensor]] = {}
    for name, weight in model.text_encoders["text"].rnn.named_parameters():
        assert weight.grad is not None
        layers.setdefault(int(name.split("_l")[1][0]), []).append(weight.grad.float().flatten())
    return {layer: torch.cat(parts) for layer, parts in layers.items()}


def agreement(bench: Bench) -> Iterator[Row]:
    """A run stopped and resumed, and strategies on one rank, against one run: their losses, of a small model."""
    config = small_run(bench)
    expected = losses(bench, [config], bench.world)
    shorter = replace(config, train=replace(config.train, steps=config.train.steps // 2))
    yield off_by("resumed after half of its steps", expected, losses(bench, [shorter, config], bench.world))
    if bench.on_gpu:
        graphed = replace(config, train=replace(config.train, cuda_graph=True))
        yield off_by("with CUDA graphs", expected, losses(bench, [graphed], bench.world))
    world = start_world(group=True)
    try:
        for strategy in ("ddp",) if bench.quick else ("ddp", "fsdp"):
            spread = replace(config, parallel=ParallelConfig(strategy=strategy))
            yield off_by(f"{strategy} on one rank", expected, losses(bench, [spread], world))
    finally:
        stop_world(world)


def small_run(bench: Bench) -> Config:
    """A few steps in fp32 of a small model, the same on any number of ranks: BatchNorm uses its stored statistics."""
    config = loop_config(bench, study_config(quick=True), steps=2 if bench.quick else 6, batch=8)
    model = replace(config.model, poster=replace(config.model.poster, batch_norm="eval"))
    return replace(
        config,
        model=model,
        data=replace(config.data, workers=0, micro_batch=4),
        optim=OptimConfig(schedule="constant", warmup_steps=0),
        train=replace(config.train, precision="fp32", compile=False, cuda_graph=False),
    )


def losses(bench: Bench, starts: list[Config], world: World, folder: Path | None = None) -> list[float]:
    """The losses of a run that is started with these configurations one after another, in the same folder."""
    with tempfile.TemporaryDirectory(dir=bench.work) as own, tf32(False):
        for config in starts:
            rows = train(config, world, folder or Path(own, "run"))
    return [row["loss"] for row in rows]


def off_by(what: str, expected: list[float], found: list[float]) -> Row:
    """The largest relative difference of two runs' losses."""
    off = max(abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True))
    claim = f"losses: {what} against one process that was never stopped"
    return below(claim, off, "relative difference", GOAL_LOSSES)


def below(claim: str, value: float, unit: str, goal: float, spread: str = "") -> Row:
    """A row whose value should stay below a goal."""
    return Row(claim=claim, value=value, unit=unit, goal=f"< {goal:g}", holds=value < goal, spread=spread)


def decoding(bench: Bench) -> Iterator[Row]:
    """Posters decoded on one CPU core and on the GPU: speed, and how far the pixels are apart."""
    jpegs, side = some_posters(bench, 8 if bench.quick else 128), int(bench.manifest().image["size"])
    out = np.empty((len(jpegs), side, side, 3), np.uint8)

    def on_cpu() -> None:
        for jpeg, pixels in zip(jpegs, out, strict=True):
            decode_jpeg(jpeg, pixels)

    yield Row(claim="JPEG decoding, one CPU core", value=bench.rate(on_cpu, len(jpegs), 1).value, unit="images/s")
    if not bench.on_gpu:
        yield Row(claim="JPEG decoding on the GPU", value=float("nan"), unit="needs CUDA")
        return

    from torchcodec.decoders import decode_jpeg as decode_jpegs

    # if it cannot, this says why
    decode_jpegs([torch.frombuffer(bytearray(jpegs[0]), dtype=torch.uint8)], device=bench.device)
    whole = jpeg_batch(jpegs, side)
    yield pixels_apart("JPEG decoding on the GPU against the CPU", decoded(whole, bench.device), out, "")
    rate = bench.rate(lambda: decoded(whole, bench.device), len(jpegs)).value
    yield Row(claim=f"JPEG decoding on the GPU, batches of {len(jpegs)}", value=rate, unit="images/s")
    spoilt = bytearray(jpegs[1])
    spoilt[len(spoilt) // 2 : len(spoilt) // 2 + 64] = bytes(64)
    batch = jpeg_batch([jpegs[0], bytes(spoilt), *jpegs[2:]], side)
    decode_images(batch, "poster", bench.device)
    on_gpu = batch.pixels.get("poster.images")
    pixels = torch.as_tensor(batch.images) if on_gpu is None else on_gpu.cpu()
    others = np.arange(len(jpegs)) != 1
    where = f"decoded on the {'CPU' if on_gpu is None else 'GPU'}, {len(batch.faults)} faults reported"
    yield pixels_apart("... with one damaged JPEG among them, the others", pixels[others], out[others], where)


def decoded(batch: Batch, device: torch.device) -> Tensor:
    """The pixels of a batch of JPEGs on the device. Raises RuntimeError if it could not decode one of them."""
    batch = replace(batch, arrays=dict(batch.arrays), pixels={})
    decode_images(batch, "poster", device)
    if not batch.pixels:
        raise RuntimeError("the GPU refused a JPEG, the CPU decoded the batch")
    return batch.pixels["poster.images"]


def pixels_apart(claim: str, found: Tensor, expected: np.ndarray, spread: str) -> Row:
    off = float((found.cpu().float() - torch.from_numpy(expected).float()).abs().mean())
    return below(claim, off, "of 255, mean difference", GOAL_PIXELS, spread)


def some_posters(bench: Bench, most: int) -> list[bytes]:
    """The first JPEGs of the packed shards."""
    manifest = bench.manifest()
    with tarfile.open(str(manifest.folder / manifest.shards_of("train")[0].file)) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")][:most]
        files = [tar.extractfile(member) for member in members]
        return [file.read() for file in files if file is not None]


def jpeg_batch(jpegs: list[bytes], side: int) -> Batch:
    """A batch as a reader makes it that leaves decoding to the device: JPEGs where pixels would lie."""
    images = np.zeros((len(jpegs), side, side, 3), np.uint8)
    for place, jpeg in zip(images, jpegs, strict=True):
        place.reshape(-1)[: len(jpeg)] = np.frombuffer(jpeg, np.uint8)
    return Batch(
        ids=np.arange(len(jpegs), dtype=np.int64),
        labels=np.zeros((len(jpegs), 19), np.float32),
        weights=np.ones(len(jpegs), np.float32),
        arrays={"poster.images": images, "poster.jpeg_bytes": np.array([len(jpeg) for jpeg in jpegs], np.int32)},
    )
