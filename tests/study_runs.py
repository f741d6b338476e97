"""Evaluated runs without training: predictions drawn from the films' labels, with the files that a run leaves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.config.files import parse_config, save_config
from genre_dist.genres import GENRE_NAMES
from genre_dist.metrics.measures import metrics
from genre_dist.schema import TMDB, Schema
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.training.evaluation import Evaluation, save_evaluation

FROZEN = ("--model.text.frozen", "true", "--model.poster.frozen", "true", "--model.text.weights", "text.safetensors")
WARM = ("--model.text.weights", "text.safetensors")
TEXT = ("--model.poster.arch", "none")


def labels_of(manifest: Manifest, split: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids and labels of a split as the shards have them."""
    reader = ShardReader(manifest, split, (), 16)
    parts = [
        reader.read(Rows(np.full(size, number), np.arange(size))) for number, size in enumerate(reader.index.sizes)
    ]
    return np.concatenate([part.ids for part in parts]), np.concatenate([part.labels for part in parts]) > 0


def drawn_labels(films: int, seed: int = 0) -> NDArray[np.bool_]:
    """Labels of invented films, about two of 19 genres each."""
    return np.random.default_rng(seed).random((films, len(GENRE_NAMES))) < 0.12


def drawn_logits(labels: NDArray[np.bool_], skill: float, seed: int) -> NDArray[np.float32]:
    """What a model of this skill, too careful at 0.5, might say. Models share most errors, as real ones do."""
    common = np.random.default_rng(99).normal(size=labels.shape)
    own = np.random.default_rng(seed).normal(size=labels.shape)
    return (0.8 * common + 0.6 * own + skill * labels - 2).astype(np.float32)


def write_evaluation(
    run: Path,
    split: str,
    ids: NDArray[np.int64],
    logits: NDArray[np.float32],
    labels: NDArray[np.bool_],
    declared: Schema = TMDB,
    keys: list[str] | None = None,
) -> None:
    """The files of an evaluation."""
    run.mkdir(parents=True, exist_ok=True)
    told = {"split": split, "loss": 0.3, "left_out": 0, **metrics(logits, labels, GENRE_NAMES, declared.labels.choose)}
    save_evaluation(Evaluation(split, ids, logits, labels, told, declared, keys), run)


def write_config(run: Path, shards: Path, *options: str) -> None:
    """The configuration of a run."""
    run.mkdir(parents=True, exist_ok=True)
    save_config(
        parse_config(["--data.shards", str(shards), "--run.dir", str(run), *options]).config, run / "config.yaml"
    )


def write_record(run: Path, steps: int = 40, seconds: float = 0.5) -> None:
    """A record of steps with a validation every tenth."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        rows.append(
            {"kind": "train", "step": step, "epoch": 0, "loss": 0.7 / step**0.3, "samples": 16, "memory_bytes": 2**30}
            | {"samples_per_second": 16 / seconds, "step_seconds": seconds, "ranks": 2, "device": "cpu"}
        )
        if step % 10 == 0:
            share = 1 - 10 / (10 + step)
            value = {"loss": 0.5 / step**0.2, "micro_f1": share, "mean_average_precision": share}
            rows.append({"kind": "val", "step": step, "epoch": 0} | value)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(run: Path, shards: Path, skill: float, seed: int, options: Sequence[str] = (), every: int = 1) -> Path:
    """A whole evaluated run on the films of some shards, on every `every`-th of them."""
    manifest = load_manifest(shards)
    write_config(run, shards, *options)
    write_record(run)
    for split in ("val", "test"):
        ids, labels = labels_of(manifest, split)
        logits = drawn_logits(labels, skill, seed)
        write_evaluation(run, split, ids[::every], logits[::every], labels[::every])
    return run
