"""Evaluating a split exactly once per film on any number of ranks, and what it leaves on disk."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import nn

from genre_dist.config import DataConfig, derive_batches
from genre_dist.parallel.world import World
from genre_dist.printable import printable, terminal
from genre_dist.stream.cache import block_cache
from genre_dist.stream.device import Size, device_feed, sent, to_device, whole_pixels
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.loader import evaluation_stream
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.study.evaluated import Predictions, write_evaluation
from genre_dist.study.metrics import figures_of_named, metrics
from genre_dist.study.run import Run
from genre_dist.study.thresholds import FILE as THRESHOLDS
from genre_dist.study.thresholds import fit_thresholds, load_thresholds, save_thresholds
from genre_dist.training.experiment import autocast_for, choose_precision
from genre_dist.training.loss import loss_sum
from genre_dist.training.stopping import Stopped, heed_while_waiting
from genre_dist.training.watch import tolerated


class Evaluation(NamedTuple):
    """The predictions for a split, in stored order, on rank 0."""

    split: str
    ids: NDArray[np.int64]  # [films]
    logits: NDArray[np.float32]  # [films, genres]
    labels: NDArray[np.bool_]  # [films, genres]
    metrics: dict[str, Any]


def evaluate(
    model: nn.Module,
    manifest: Manifest,
    split: str,
    members: tuple[str, ...],
    data: DataConfig,
    micro_batch: int,
    world: World,
    autocast: Callable[[], AbstractContextManager[Any]],
    stop: Callable[[], bool] = lambda: False,
    size: Size | None = None,
) -> Evaluation | None:
    """Predict every film of a split that has the members, each once over all ranks; the result is on rank 0.

    `size`: the one size of batch that a compiled model takes. No batch waits for the device; predictions are read at
    the end.

    Raises ValueError if there is no such film, Stopped if `stop` says so on any rank.
    """
    feed = device_feed(world.device, data.decode if world.device.type == "cuda" else "auto")
    cache = block_cache(data.cache_dir, data.cache_gb)
    reader = ShardReader(manifest, split, members, data.max_tokens, feed is None or not feed.decodes, cache)
    if reader.index.samples == 0:
        raise ValueError(f"{manifest.folder}: no film of the {split} split has {' and '.join(members)}")
    began = time.monotonic()
    was_training = model.training
    model.eval()
    predicted: list[tuple[NDArray[np.int64], torch.Tensor, NDArray[np.bool_]]] = []  # ids, logits, labels
    faults: list[str] = []
    loss = torch.zeros(1, device=world.device)
    stream = evaluation_stream(
        reader,
        batch=micro_batch,
        world=world.size,
        rank=world.rank,
        workers=data.workers,
        prefetch=data.prefetch,
        feed=feed,
        waiting=partial(heed_while_waiting, stop, world.size == 1),
    )
    try:
        for batch in stream:
            if world.any(stop()):
                raise Stopped
            inputs = to_device(batch, world.device, whole_pixels(data), size)
            # not inference_mode: weights that a strategy gathers here may be used again in training
            with torch.no_grad(), autocast():
                logits = model(*inputs.for_model)
            if n := len(batch.ids):
                # a film that could not be read keeps its row: it is predicted from blanks, and counted
                loss += loss_sum(logits[:n], inputs.labels[:n], torch.ones_like(inputs.weights[:n]))
                on_host = logits[:n].float().to("cpu", non_blocking=True)  # on its way, into pinned memory
                predicted.append((batch.ids.copy(), on_host, batch.labels > 0))
                faults += batch.faults
    finally:
        stream.close()
        model.train(was_training)
    # [loss, films that could not be read] over all ranks: what the ranks wait for the device for
    total_loss, bad = world.sum(torch.cat([loss, sent(torch.tensor([float(len(faults))]), world.device)])).tolist()
    if not math.isfinite(total_loss):
        raise ValueError(f"the loss on the {split} split is {total_loss}: the model's weights have run away")
    parts = [(ids, logits.numpy(), labels) for ids, logits, labels in predicted]  # all is there: the loss came after it
    gathered = world.gather((parts, faults))
    for fault in (fault for _, rank_faults in gathered or () for fault in rank_faults):
        print(f"warning: predicted from blanks: {printable(fault)}", file=sys.stderr, flush=True)
    _refuse_too_many_bad(reader, int(bad), data.max_bad_fraction)
    if gathered is None:
        return None
    seconds = time.monotonic() - began
    ids, logits, labels = (
        np.concatenate([part[k] for rank_parts, _ in gathered for part in rank_parts]) for k in range(3)
    )
    assert np.array_equal(ids, _all_ids(reader.index)), "the ranks did not evaluate exactly the films of the split"
    told = {
        "split": split,
        "loss": total_loss / len(ids),
        **metrics(logits, labels, [genre.name for genre in manifest.genres]),
        "left_out": manifest.samples(split) - len(ids),
        "bad_samples": sum(len(rank_faults) for _, rank_faults in gathered),
        "samples_per_second": len(ids) / seconds,
    }
    return Evaluation(split, ids, logits, labels, told)


def _refuse_too_many_bad(reader: ShardReader, bad: int, fraction: float) -> None:
    """Raise ValueError if so many films could not be read on all ranks that the figures would mean little."""
    if bad > tolerated(reader.index.samples, fraction):
        raise ValueError(
            f"{bad} films of the {reader.split} split could not be read, more than data.max_bad_fraction={fraction} "
            f"allows. Check the shards with `genre-dist inspect {reader.manifest.folder} --verify`"
        )


def _all_ids(index: SplitIndex) -> NDArray[np.int64]:
    """Every film id of a split, as the index has them."""
    sizes = index.sizes
    return np.concatenate(
        [index.ids(Rows(np.full(size, number), np.arange(size))) for number, size in enumerate(sizes)]
    )


def evaluate_run(run: Run, folder: Path, split: str, shards: Path | str | None, world: World) -> None:
    """Evaluate a finished run on a split of its own (or other) shards, on all ranks.

    A run whose thresholds were never fitted is evaluated on val first. Raises ValueError if the shards have other
    genres or another vocabulary than the model was trained with.
    """
    data, members = run.config.data, run.config.model.members
    manifest = load_manifest(shards or data.shards)
    check_same_labels(run, manifest)
    micro_batch = derive_batches(
        dataclasses.replace(data, global_batch=data.global_batch * world.size), world.size
    ).micro
    autocast = autocast_for(choose_precision(run.config, world.device, trained_elsewhere=True), world.device)
    unfitted = world.broadcast(not (folder / THRESHOLDS).is_file())
    fit_first = unfitted and split != "val" and manifest.samples("val", members) > 0
    for each in ("val", split) if fit_first else (split,):
        evaluation = evaluate(run.model, manifest, each, members, data, micro_batch, world, autocast)
        if evaluation is not None:
            world.progress()  # figures of many films take their time, for which the others wait
            print_evaluation(save_evaluation(evaluation, folder))


def check_same_labels(run: Run, manifest: Manifest) -> None:
    """Raise ValueError if shards have other genres, or another vocabulary, than the model was trained with."""
    if run.genres != [genre.name for genre in manifest.genres]:
        raise ValueError(f"{manifest.folder}: its genres are not those the model was trained on")
    trained_on = run.facts["text"]["vocabulary_sha256"]
    if run.config.model.uses_text and manifest.text["vocabulary_sha256"] != trained_on:
        raise ValueError(
            f"{manifest.folder}: packed with another vocabulary than the model was trained with; its token ids would "
            "mean other words"
        )


def save_evaluation(evaluation: Evaluation, run: Path) -> dict[str, Any]:
    """Write `predictions-<split>.parquet` and `metrics-<split>.json` into a run's folder; returns the metrics.

    On val it fits the thresholds first and writes `thresholds.json`. Once there are some, every split's metrics have
    the figures at fitted thresholds beside those at 0.5, under `fitted`.
    """
    genres = list(evaluation.metrics["per_genre"])
    if evaluation.split == "val":
        fitted = fit_thresholds(evaluation.logits, evaluation.labels)
        save_thresholds(run, genres, fitted, len(evaluation.ids))
    thresholds = load_thresholds(run, genres)
    told = dict(evaluation.metrics)
    if thresholds is not None:
        named = evaluation.logits > thresholds
        told["fitted"] = {"fitted_on_these_films": evaluation.split == "val"}
        told["fitted"] |= figures_of_named(named, evaluation.labels, genres)
    predictions = Predictions(evaluation.ids, evaluation.logits, evaluation.labels)
    write_evaluation(run, evaluation.split, predictions, told)
    return told


def print_evaluation(told: dict[str, Any]) -> None:
    """The evaluation as tables for people."""
    console = terminal()
    left_out = f", {told['left_out']:,} without what the model needs left out" if told["left_out"] else ""
    console.print(f"{told['split']}: {told['films']:,} films{left_out}", style="bold")
    fitted = told.get("fitted", {})
    on = "these films" if fitted.get("fitted_on_these_films") else "val"
    table = Table("", "threshold 0.5", f"fitted on {on}")
    for name in ("accuracy", "micro_f1", "macro_f1", "sample_f1"):
        table.add_row(name, _number(told[name]), _number(fitted.get(name)))
    for name in ("loss", "mean_average_precision", "auc"):
        table.add_row(name, _number(told[name]), "")
    console.print(table)
    keys = ("f1", "precision", "recall", "accuracy", "average_precision", "auc")
    table = Table("genre", "films", "F1 (fitted)", "F1", "precision", "recall", "accuracy", "AP", "AUC")
    for genre, row in told["per_genre"].items():
        at_fitted = fitted["per_genre"][genre]["f1"] if fitted else None
        table.add_row(printable(genre), f"{row['films']:,}", *map(_number, (at_fitted, *(row[key] for key in keys))))
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
