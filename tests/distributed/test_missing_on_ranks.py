"""Samples that lack a field teach the model too, and every strategy on every number of ranks learns the same."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import Processes, losses, options, rows
from safetensors.torch import load_file

from genre_dist.packing.pack import pack
from genre_dist.stream.manifest import load_manifest
from genre_dist.train import main

pytestmark = pytest.mark.timeout(600)

STEPS = 12  # an epoch has 6
RUN = (
    *("--data.global_batch", 32, "--run.seed", 4, "--optim.schedule", "constant", "--optim.warmup_steps", 0),
    *("--data.workers", 0, "--train.steps", STEPS, "--train.drop_field", 0.3),
    *("--optim.poster_lr", 1e-6, "--optim.text_lr", 1e-3, "--optim.heads_lr", 1e-3),
)
STORED = ("--model.poster.batch_norm", "eval")
SYNCHRONISED = ("--model.poster.batch_norm", "sync", "--data.micro_batch")
FROZEN = (
    *("--model.text.frozen", "true", "--model.poster.frozen", "true", "--data.crop_scale", "[1,1]"),
    *("--train.cache_encodings",),
)
STRATEGIES = ("ddp", "fsdp", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def shards(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All films of the sample that have a genre, whether or not they have a poster or an overview."""
    folder = tmp_path_factory.mktemp("lacking") / "shards"
    pack(sample_catalogue, folder, size=72, shard_size=50, workers=1, require=())
    return folder


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a single process, one micro-batch a step."""
    folder = tmp_path_factory.mktemp("alone")
    for name, more in (
        ("stored", (*STORED, "--data.micro_batch", 32)),
        ("small", (*STORED, "--data.micro_batch", 2)),
        ("sync", (*SYNCHRONISED, 32)),
        ("slow", (*FROZEN, "off")),
        ("encoded", (*FROZEN, "on")),
    ):
        assert main(options(shards, folder / name, *RUN, *more)) == 0
    return folder


@pytest.fixture(scope="module")
def ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each strategy on two ranks, ddp and fsdp on four, with micro-batches of which many lack every image or text."""
    folder = tmp_path_factory.mktemp("ranks")
    for world, strategies in ((2, STRATEGIES), (4, ("ddp", "fsdp"))):
        lines = []
        for name in strategies:
            more = (*STORED, "--data.micro_batch", 4, "--parallel.strategy", name)
            lines.append(options(shards, folder / f"{name} {world}", *RUN, *more))
        more = (*SYNCHRONISED, 32 // world, "--parallel.strategy", "ddp")
        lines.append(options(shards, folder / f"sync {world}", *RUN, *more))
        (folder / "runs.json").write_text(json.dumps(lines))
        with Processes(folder / f"log{world}") as processes:
            processes.fork("strategy_runs", [str(folder / "runs.json"), str(world)])
            processes.succeed(400)
    return folder


def assert_same_training(run: Path, reference: Path) -> None:
    np.testing.assert_allclose(list(losses(run).values()), list(losses(reference).values()), atol=1e-4, rtol=0)
    weights, expected = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    ours, theirs = (pq.read_table(folder / "predictions-val.parquet") for folder in (run, reference))
    assert ours["tmdb_id"].to_pylist() == theirs["tmdb_id"].to_pylist()
    np.testing.assert_allclose(ours["logits"].to_pylist(), theirs["logits"].to_pylist(), atol=1e-4)


def test_films_without_a_field_are_trained_on_and_their_vector_learns(alone: Path, shards: Path) -> None:
    manifest = load_manifest(shards)
    patterns = manifest.patterns("train", ("overview", "poster"))
    assert min(patterns[("overview",)], patterns[("poster",)]) > 0
    epoch = rows(alone / "stored")[:6]
    assert sum(row["samples"] for row in epoch) == manifest.samples("train") - patterns.get((), 0)
    weights = load_file(alone / "stored" / "model.safetensors")
    assert {name for name in weights if name.startswith("missing.")} == {"missing.text", "missing.poster"}
    assert all(weights[f"missing.{part}"].abs().max() > 1e-3 for part in ("text", "poster"))


def test_micro_batches_change_nothing(alone: Path) -> None:
    assert_same_training(alone / "small", alone / "stored")


@pytest.mark.parametrize(("strategy", "world"), [*((name, 2) for name in STRATEGIES), ("ddp", 4), ("fsdp", 4)], ids=str)
def test_strategies_and_ranks_change_nothing(strategy: str, world: int, ranks: Path, alone: Path) -> None:
    assert_same_training(ranks / f"{strategy} {world}", alone / "stored")


@pytest.mark.parametrize("world", [2, 4])
def test_synchronised_statistics_are_of_the_images_that_are_there(world: int, ranks: Path, alone: Path) -> None:
    assert_same_training(ranks / f"sync {world}", alone / "sync")


def test_encodings_computed_once_change_nothing(alone: Path) -> None:
    assert_same_training(alone / "encoded", alone / "slow")
