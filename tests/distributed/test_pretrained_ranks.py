"""A transformer as the text encoder: every strategy on two ranks learns what one process learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Processes, losses, options, rows, tensors_of
from safetensors.torch import load_file
from tiny_text import write_bert

from genre_dist.catalogue.catalogue import read_rows
from genre_dist.packing.catalogue_rows import COLUMNS
from genre_dist.packing.pack import pack
from genre_dist.stream.manifest import load_manifest
from genre_dist.train import main

pytest.importorskip("transformers")
pytestmark = pytest.mark.timeout(600)

RUN = (
    *("--data.global_batch", 32, "--data.micro_batch", 4, "--run.seed", 4, "--optim.schedule", "constant"),
    *("--optim.warmup_steps", 0, "--optim.text_lr", 1e-3, "--optim.poster_lr", 1e-6, "--data.workers", 0),
    *("--model.poster.batch_norm", "eval", "--model.text.pooling", "mean", "--data.max_tokens", 24),
    *("--train.steps", 6, "--checkpoint.every_steps", 3),
)
LAYERED = ("--optim.text_layer_decay", 0.7, "--model.text.frozen_through", "embeddings")
GRADUAL = ("--model.text.frozen", "true", "--model.text.unfreeze_at", '{"embeddings": 2, "none": 4}')
LACKING = ("--model.missing", "learn")
RECOMPUTED = ("--model.poster.arch", "none", "--train.activation_checkpointing", "blocks")
CASES = {
    "ddp": (),
    "fsdp": (),
    "zero3": (),
    "ddp layered": LAYERED,
    "fsdp layered": LAYERED,
    "ddp gradual": GRADUAL,
    "fsdp recomputed": RECOMPUTED,
    "ddp lacking": LACKING,
    "fsdp lacking": LACKING,
}
ALONE = {
    "": (),
    "layered": LAYERED,
    "gradual": GRADUAL,
    "recomputed": ("--model.poster.arch", "none"),
    "lacking": LACKING,
}


def arguments(folder: Path, name: str, *more: object) -> list[str]:
    shards = folder / ("shards-lacking" if name.endswith("lacking") else "shards")
    return options(shards, folder / name, "--model.text.arch", f"hf:{folder / 'bert'}", *RUN, *more)


@pytest.fixture(scope="module")
def runs(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each case by one process, and by a strategy on two ranks; in some of them films lack a text or a poster."""
    folder = tmp_path_factory.mktemp("pretrained")
    bert = write_bert(folder / "bert", [row["overview"] or "" for row in read_rows(sample_catalogue, COLUMNS)])
    for name, require in (("shards", ("poster", "overview")), ("shards-lacking", ())):
        pack(sample_catalogue, folder / name, tokenizer=str(bert), size=72, shard_size=50, require=require)
    for name, more in ALONE.items():
        assert main(arguments(folder, f"alone {name}".strip(), *more)) == 0
    lines = [arguments(folder, name, "--parallel.strategy", name.split()[0], *more) for name, more in CASES.items()]
    (folder / "runs.json").write_text(json.dumps(lines))
    with Processes(folder / "log") as ranks:
        ranks.fork("strategy_runs", [str(folder / "runs.json"), "2"])
        ranks.succeed(400)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_learns(case: str, runs: Path) -> None:
    run, reference = runs / case, runs / f"alone {case.partition(' ')[2]}".strip()
    assert list(losses(run)) == list(range(1, 7))
    np.testing.assert_allclose(list(losses(run).values()), list(losses(reference).values()), atol=1e-4, rtol=0)
    norms = [[row["grad_norm"] for row in rows(folder)] for folder in (run, reference)]
    np.testing.assert_allclose(*norms, rtol=1e-3)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run, reference))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)
    ours, theirs = (tensors_of(folder / "checkpoints" / "step-00000006") for folder in (run, reference))
    assert ours.keys() == theirs.keys()


def test_every_layer_moved_and_frozen_embeddings_did_not(runs: Path) -> None:
    """Otherwise the runs would show less than they claim."""
    begun = load_file(runs / "bert" / "model.safetensors")
    for case, frozen in (("alone", False), ("alone layered", True)):
        trained = load_file(runs / case / "model.safetensors")
        for name in ("encoder.layer.0.output.dense.weight", "encoder.layer.1.attention.self.query.weight"):
            assert not torch.equal(trained[f"text.network.{name}"], begun[name])
        name = "embeddings.word_embeddings.weight"
        assert torch.equal(trained[f"text.network.{name}"], begun[name]) == frozen


def test_films_without_a_text_are_learned_from(runs: Path) -> None:
    patterns = load_manifest(runs / "shards-lacking").patterns("train", ("overview", "poster"))
    assert patterns["poster",] > 0
    weights = load_file(runs / "ddp lacking" / "model.safetensors")
    assert all(weights[f"missing.{part}"].abs().max() > 1e-4 for part in ("text", "poster"))


def test_the_record_has_the_rate_of_the_last_layer(runs: Path) -> None:
    assert rows(runs / "fsdp layered")[0]["lr_text"] == pytest.approx(1e-3 * 0.7)
    assert rows(runs / "fsdp")[0]["lr_text"] == pytest.approx(1e-3)
