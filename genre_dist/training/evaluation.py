"""Evaluating a split exactly once per sample on any number of ranks, and the files of an evaluation."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genre_dist.config import Config
from genre_dist.metrics.choosing import log_losses, named_labels
from genre_dist.metrics.evaluation_files import Predictions, write_evaluation
from genre_dist.metrics.measures import by_fields, figures_of_named, metrics
from genre_dist.metrics.thresholds import fit_thresholds, load_thresholds, save_thresholds
from genre_dist.parallel.world import World
from genre_dist.printable import printable, terminal
from genre_dist.schema import TMDB, Schema
from genre_dist.stream.cache import block_cache
from genre_dist.stream.device_feed import Hidden, Size, device_feed, sent, to_device, whole_pixels
from genre_dist.stream.loader import evaluation_stream
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.reader import ShardReader
from genre_dist.tars.sample_reader import reader_type
from genre_dist.training.loss import Loss, plain_loss
from genre_dist.training.one_label_tables import figure, one_label_tables
from genre_dist.training.stopping import Stopped, heed_while_waiting


class Evaluation(NamedTuple):
    """The predictions for a split, in stored order, on rank 0."""

    split: str
    ids: NDArray[np.int64]  # [samples]
    logits: NDArray[np.float32]  # [samples, labels]
    labels: NDArray[np.bool_]  # [samples, labels]
    metrics: dict[str, Any]
    declared: Schema = TMDB
    keys: list[str] | None = None
    """The ids as the data has them; None if they are these numbers."""
    has: dict[str, NDArray[np.bool_]] = {}  # noqa: RUF012 (never changed)
    """Field -> whether a sample has it [samples], if samples may lack fields."""

    def only(self, chosen: NDArray[np.bool_]) -> "Evaluation":
        """The evaluation of some of the samples, chosen [samples]; the others count as left out."""
        logits, labels, choose = self.logits[chosen], self.labels[chosen], self.declared.labels.choose
        figures = metrics(logits, labels, list(self.metrics["per_genre"]), choose)
        figures["loss"] = float(log_losses(logits, labels, choose).mean())
        figures["left_out"] = self.metrics["left_out"] + int((~chosen).sum())
        return self._replace(
            ids=self.ids[chosen],
            logits=logits,
            labels=labels,
            metrics=self.metrics | figures,
            keys=self.keys and [self.keys[row] for row in np.flatnonzero(chosen)],
            has={name: own[chosen] for name, own in self.has.items()},
        )


class _Predicted(NamedTuple):
    """One rank's predictions."""

    parts: list[tuple[NDArray[np.int64], Tensor, NDArray[np.bool_]]]  # ids, logits on their way to the host, labels
    keys: list[str]  # ids as the data has them, of a declared data set
    faults: list[str]
    loss: Tensor  # [1], the sum over these samples


class Evaluator(NamedTuple):
    """Computes a model's predictions on all ranks."""

    model: nn.Module
    config: Config
    world: World
    autocast: Callable[[], AbstractContextManager[Any]]
    micro_batch: int
    size: Size | None = None
    """The only batch size that a compiled model takes."""
    hidden: Hidden | None = None
    """Hides fields of samples from a model that can do without them."""

    def evaluate(self, manifest: Manifest, split: str, stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """Predict every sample of a split that has the model's inputs, once over all ranks; rank 0 gets the result.

        No batch waits for the device; predictions are read at the end. Raises ValueError if there is no such sample,
        Stopped if `stop` returns True on any rank.
        """
        began, data, model = time.monotonic(), self.config.data, self.config.model
        members = model.members(manifest.declared)
        feed = device_feed(self.world.device, data.decode if self.world.device.type == "cuda" else "auto")
        cache = block_cache(data.cache_dir, data.cache_gb)
        decode = feed is None or not feed.decodes
        reader = reader_type(manifest)(manifest, split, members, data.max_tokens, decode, cache, model.learns_missing)
        if reader.index.samples == 0:
            raise ValueError(
                f"{manifest.folder}: no {manifest.declared.sample} of the {split} split has {' and '.join(members)}"
            )
        stream = evaluation_stream(
            reader,
            batch=self.micro_batch,
            world=self.world.size,
            rank=self.world.rank,
            workers=data.workers,
            prefetch=data.prefetch,
            feed=feed,
            waiting=partial(heed_while_waiting, stop, self.world.size == 1),
        )
        was_training = self.model.training
        self.model.eval()
        try:
            with closing(stream) as batches:
                predicted = self._predict(batches, stop, plain_loss(manifest.declared.labels.choose))
        finally:
            self.model.train(was_training)
        gathered, total_loss = self._gather(predicted, reader)
        if gathered is None:
            return None
        seconds = time.monotonic() - began
        ids, logits, labels = (
            np.concatenate([part[k] for rank_parts, *_ in gathered for part in rank_parts]) for k in range(3)
        )
        assert np.array_equal(ids, reader.index.all_ids()), "the ranks did not evaluate exactly the split's samples"
        bad = sum(len(rank_faults) for _, rank_faults, _ in gathered)
        keys = [key for *_, rank_keys in gathered for key in rank_keys] or None
        predictions = Predictions(ids, logits, labels, keys)
        evaluation = evaluation_of(manifest, split, predictions, total_loss / len(ids), bad, seconds)
        return evaluation._replace(has=reader.has_fields() if model.learns_missing else {})

    def _predict(self, batches: Any, stop: Callable[[], bool], loss: Loss) -> _Predicted:
        """This rank's share of a split."""
        predicted = _Predicted([], [], [], torch.zeros(1, device=self.world.device))
        pixels = whole_pixels(self.config.data)
        for batch in batches:
            if self.world.any(stop()):
                raise Stopped
            inputs = to_device(batch, self.world.device, pixels, self.size, self.hidden)
            # not inference_mode: training may reuse weights that a strategy gathers here
            with torch.no_grad(), self.autocast():
                logits = self.model(*inputs.for_model)
            if n := len(batch.ids):
                # an unreadable sample keeps its row, predicted from blank inputs and counted
                predicted.loss.add_(loss(logits[:n], inputs.labels[:n], torch.ones_like(inputs.weights[:n])))
                on_host = logits[:n].float().to("cpu", non_blocking=True)  # on its way, into pinned memory
                predicted.parts.append((batch.ids.copy(), on_host, batch.labels > 0))
                predicted.keys.extend(batch.samples)
                predicted.faults.extend(batch.faults)
        return predicted

    def _gather(self, predicted: _Predicted, reader: ShardReader) -> tuple[list[Any] | None, float]:
        """Every rank's (parts, faults) on rank 0, and the sum of all losses.

        Raises ValueError if the loss is not finite, or if too many samples could not be read.
        """
        bad_here = sent(torch.tensor([float(len(predicted.faults))]), self.world.device)
        # the only wait for the device
        total_loss, bad = self.world.sum(torch.cat([predicted.loss, bad_here])).tolist()
        if not math.isfinite(total_loss):
            raise ValueError(f"the loss on the {reader.split} split is {total_loss}: the model's weights have run away")
        # the logits have arrived: the loss was queued after them
        parts = [(ids, logits.numpy(), labels) for ids, logits, labels in predicted.parts]
        gathered = self.world.gather((parts, predicted.faults, predicted.keys))
        for fault in (fault for _, rank_faults, _ in gathered or () for fault in rank_faults):
            print(f"warning: predicted from blanks: {printable(fault)}", file=sys.stderr, flush=True)
        data = self.config.data
        if bad > data.tolerated_bad(reader.index.samples):
            raise ValueError(
                f"{int(bad)} {reader.manifest.declared.samples} of the {reader.split} split could not be read, more "
                f"than data.max_bad_fraction={data.max_bad_fraction} allows. Check the shards with `genre-dist inspect "
                f"{reader.manifest.folder} --verify`"
            )
        return gathered, total_loss


def evaluation_of(
    manifest: Manifest, split: str, predictions: Predictions, loss: float, bad: int, seconds: float
) -> Evaluation:
    """Predictions with their metrics; `bad` is the number of samples that could not be read."""
    ids, logits, labels, keys = predictions
    names, declared = [genre.name for genre in manifest.genres], manifest.declared
    figures = {
        "split": split,
        "loss": loss,
        **metrics(logits, labels, names, declared.labels.choose),
        "left_out": manifest.samples(split) - len(ids),
        "bad_samples": bad,
        "samples_per_second": len(ids) / seconds,
    }
    return Evaluation(split, ids, logits, labels, figures, declared, keys)


def save_evaluation(evaluation: Evaluation, run: Path, fit_on: Evaluation | None = None) -> dict[str, Any]:
    """Write `predictions-<split>.parquet` and `metrics-<split>.json` into a run's folder; returns the metrics.

    On val it first fits the thresholds, on the samples of `fit_on` (by default its own), and writes
    `thresholds.json`. Once that exists, the metrics of every split also
    have the values at fitted thresholds, under `fitted`. Where a sample has exactly one label, there are no thresholds.
    """
    labels, chooses_many = list(evaluation.metrics["per_genre"]), evaluation.declared.labels.choose == "many"
    if evaluation.split == "val" and chooses_many:
        fit_on = fit_on or evaluation
        fitted = fit_thresholds(fit_on.logits, fit_on.labels)
        save_thresholds(run, labels, fitted, len(fit_on.ids), evaluation.declared)
    thresholds = load_thresholds(run, labels) if chooses_many else None
    figures = dict(evaluation.metrics)
    if evaluation.has:
        choose = evaluation.declared.labels.choose
        figures["by_fields"] = by_fields(evaluation.has, evaluation.logits, evaluation.labels, thresholds, choose)
    if thresholds is not None:
        named = named_labels(evaluation.logits, "many", thresholds)
        figures["fitted"] = {"fitted_on_these_films": evaluation.split == "val"}
        figures["fitted"] |= figures_of_named(named, evaluation.labels, labels)
    predictions = Predictions(evaluation.ids, evaluation.logits, evaluation.labels, evaluation.keys)
    write_evaluation(run, evaluation.split, predictions, figures, evaluation.declared)
    return figures


def print_evaluation(figures: dict[str, Any], declared: Schema = TMDB) -> None:
    """Print an evaluation as tables, in the words of its data."""
    from rich.table import Table  # only printing needs rich

    console = terminal()
    left_out = f", {figures['left_out']:,} without what the model needs left out" if figures["left_out"] else ""
    console.print(f"{figures['split']}: {figures['films']:,} {declared.samples}{left_out}", style="bold")
    if figures.get("by_fields"):
        table = Table(f"{declared.samples} with", "", "micro F1 (fitted)", "micro F1", "macro F1", "mAP")
        for fields, row in figures["by_fields"].items():
            values = (row.get("micro_f1_fitted"), row["micro_f1"], row["macro_f1"], row["mean_average_precision"])
            table.add_row(fields, f"{row['films']:,}", *map(figure, values))
        console.print(table)
    if declared.labels.choose == "one":
        for table in one_label_tables(figures, declared):
            console.print(table)
        return
    fitted = figures.get("fitted", {})
    on = f"these {declared.samples}" if fitted.get("fitted_on_these_films") else "val"
    table = Table("", "threshold 0.5", f"fitted on {on}")
    for name in ("accuracy", "micro_f1", "macro_f1", "sample_f1"):
        table.add_row(name, figure(figures[name]), figure(fitted.get(name)))
    for name in ("loss", "mean_average_precision", "auc"):
        table.add_row(name, figure(figures[name]), "")
    console.print(table)
    keys = ("f1", "precision", "recall", "accuracy", "average_precision", "auc")
    table = Table(declared.label, declared.samples, "F1 (fitted)", "F1", "precision", "recall", "accuracy", "AP", "AUC")
    for genre, row in figures["per_genre"].items():
        at_fitted = fitted["per_genre"][genre]["f1"] if fitted else None
        table.add_row(printable(genre), f"{row['films']:,}", *map(figure, (at_fitted, *(row[key] for key in keys))))
    console.print(table)
