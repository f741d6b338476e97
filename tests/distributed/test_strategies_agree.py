"""Every strategy on every number of ranks learns what one process learns, and goes on from any other's checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import Processes, losses, options, rows, tensors_of
from once import tell
from safetensors.torch import load_file

from genre_dist.train import main

pytestmark = pytest.mark.timeout(900)  # the fixtures are many runs

STEPS, MORE = 12, 15  # two epochs, each with an uneven last step, and half of one more
SPREAD = ("ddp", "fsdp", "zero1", "zero2", "zero3")
NEXT = dict(zip(SPREAD, (*SPREAD[1:], SPREAD[0]), strict=True))  # by whom each one's run is continued
RUN = (
    *("--data.global_batch", 32, "--run.seed", 4, "--optim.schedule", "constant", "--optim.warmup_steps", 0),
    *("--checkpoint.every_steps", 8, "--train.eval_every_steps", 8, "--data.workers", 0),
    # AdamW turns rounding errors of gradients that are almost zero into whole steps: small ones keep the runs together
    *("--optim.poster_lr", 1e-6, "--optim.text_lr", 1e-3, "--optim.heads_lr", 1e-3),
)
STORED = ("--model.poster.batch_norm", "eval", "--data.micro_batch", 4)  # accumulated 8, 4 and 2 times on 1, 2, 4 ranks
PARTS = {  # what a strategy has to take care of, besides
    "fsdp": ("--model.heads.kernel", "batched"),  # reads the weights of modules that it does not call
    "zero2": ("--train.precision", "bf16"),
    "zero3": ("--model.poster.frozen", "true", "--model.text.frozen", "true"),  # the heads' inputs have no gradient
}
LEVERS = (  # and an epoch's last step of two films, so that most micro-batches of it have none
    *("--model.poster.arch", "helpers:small_resnet", "--data.global_batch", 90, "--data.micro_batch", 15),
    *("--train.steps", 4),
)
AVERAGED, RECOMPUTED = ("--train.ema_decay", 0.5), ("--train.activation_checkpointing", "blocks")
PULLED = {"fsdp": (*AVERAGED, *RECOMPUTED), "zero2": (*AVERAGED, *RECOMPUTED), "zero3": RECOMPUTED}
COMPRESSED = ("ddp", "fsdp")
SYNCHRONISED = ("--model.poster.batch_norm", "sync")  # the micro-batches of all ranks together: one a step


def run_ranks(folder: Path, world: int, command_lines: list[list[str]]) -> None:
    """Train run after run in the same ranks."""
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps(command_lines))
    with Processes(folder / "log") as ranks:
        ranks.fork("strategy_runs", [str(folder / "runs.json"), str(world)])
        ranks.succeed(500)


@pytest.fixture(scope="module")
def alone(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a single process: with stored statistics to STEPS and to MORE, and with synchronised ones."""
    folder = tmp_path_factory.mktemp("alone")
    for name, steps, more in (
        ("stored", STEPS, STORED),
        ("longer", MORE, STORED),
        ("sync", STEPS, (*SYNCHRONISED, "--data.micro_batch", 32)),
        ("levers", 4, (*STORED, *LEVERS, *AVERAGED)),
        *((f"{name} alone", 6, (*STORED, *more)) for name, more in PARTS.items()),
    ):
        assert main(options(sample_shards, folder / name, *RUN, *more, "--train.steps", steps)) == 0
    return folder


@pytest.fixture(scope="module")
def two(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """Each strategy on two ranks."""
    tell(pytestconfig, "strategies: each one trains on two ranks: about a minute")
    folder = tmp_path_factory.mktemp("two")
    runs = [(name, ("--train.steps", STEPS, "--parallel.strategy", name)) for name in SPREAD]
    runs += [(f"{name} part", ("--train.steps", 6, "--parallel.strategy", name, *more)) for name, more in PARTS.items()]
    runs += [(f"{name} levers", ("--parallel.strategy", name, *LEVERS, *more)) for name, more in PULLED.items()]
    compressed = ("--train.steps", 6, "--parallel.compress_gradients", "true", "--parallel.strategy")
    runs += [(f"{name} compressed", (*compressed, name)) for name in COMPRESSED]
    lines = [options(sample_shards, folder / name, *RUN, *STORED, *more) for name, more in runs]
    run_ranks(folder / "ranks", 2, lines)
    return folder


@pytest.fixture(scope="module")
def four(two: Path, sample_shards: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """On four ranks, each strategy from the start, and each continuing what another one did on two."""
    tell(pytestconfig, "strategies: each one trains on four ranks, and goes on from another's run: about a minute")
    folder = tmp_path_factory.mktemp("four")
    lines = []
    for name in SPREAD:
        micro = ("--data.micro_batch", 8)
        more = (*SYNCHRONISED, *micro, "--train.steps", STEPS, "--parallel.strategy", name)
        lines.append(options(sample_shards, folder / name, *RUN, *more))
    for name, other in NEXT.items():
        shutil.copytree(two / name, folder / f"{name} then {other}")
        more = (*STORED, "--train.steps", MORE, "--parallel.strategy", other)
        lines.append(options(sample_shards, folder / f"{name} then {other}", *RUN, *more))
    run_ranks(folder / "ranks", 4, lines)
    return folder


def assert_same_losses(run: Path, reference: Path) -> None:
    ours, theirs = losses(run), losses(reference)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-4, rtol=0)
    norms = [[row["grad_norm"] for row in rows(folder)] for folder in (run, reference)]
    np.testing.assert_allclose(*norms, rtol=1e-3)


def assert_same_training(run: Path, reference: Path, steps: int) -> None:
    assert list(losses(run)) == list(range(1, steps + 1))
    assert_same_losses(run, reference)
    weights, expected = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def assert_same_evaluations(run: Path, reference: Path) -> None:
    for split in ("val", "test"):
        ours, theirs = (pq.read_table(folder / f"predictions-{split}.parquet") for folder in (run, reference))
        assert ours["tmdb_id"].to_pylist() == theirs["tmdb_id"].to_pylist()
        np.testing.assert_allclose(ours["logits"].to_pylist(), theirs["logits"].to_pylist(), atol=1e-4)
    assert [row["step"] for row in rows(run, "val")] == [row["step"] for row in rows(reference, "val")]


def assert_same_checkpoint(run: Path, reference: Path, steps: int) -> None:
    """Weights, buffers and the optimizer's moments, under the same names."""
    ours, theirs = (tensors_of(folder / "checkpoints" / f"step-{steps:08d}") for folder in (run, reference))
    assert ours.keys() == theirs.keys()
    assert any(name.endswith("exp_avg_sq") for name in ours)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=0, check_stride=False)


def test_the_reference_learns_and_its_last_batches_are_uneven(alone: Path) -> None:
    """Otherwise the tests below would show less than they claim."""
    told = rows(alone / "longer")
    assert told[-1]["loss"] < 0.97 * told[0]["loss"]
    assert {row["samples"] % 32 for row in told} > {0}
    moved = [load_file(alone / name / "model.safetensors") for name in ("stored", "longer")]
    assert all(not torch.equal(moved[0][name], moved[1][name]) for name in moved[0] if name.endswith("weight"))


@pytest.mark.parametrize("strategy", SPREAD)
def test_two_ranks_that_accumulate_learn_what_one_process_learns(strategy: str, two: Path, alone: Path) -> None:
    assert_same_training(two / strategy, alone / "stored", STEPS)
    assert_same_evaluations(two / strategy, alone / "stored")
    assert_same_checkpoint(two / strategy, alone / "stored", STEPS)


@pytest.mark.parametrize("strategy", PARTS)
def test_frozen_parts_batched_heads_and_bf16_change_nothing_of_that(strategy: str, two: Path, alone: Path) -> None:
    run, reference = two / f"{strategy} part", alone / f"{strategy} alone"
    tolerance = 5e-3 if strategy == "zero2" else 1e-4  # bf16 has three digits
    np.testing.assert_allclose(list(losses(run).values()), list(losses(reference).values()), atol=tolerance, rtol=0)
    if strategy != "zero2":
        assert_same_training(run, reference, 6)
        assert_same_checkpoint(run, reference, 6)


@pytest.mark.parametrize("strategy", PULLED)
def test_averages_recomputed_blocks_and_micro_batches_without_films_change_nothing_of_that(
    strategy: str, two: Path, alone: Path
) -> None:
    """The single process keeps the average, but recomputes nothing."""
    run, reference = two / f"{strategy} levers", alone / "levers"
    assert [row["samples"] for row in rows(run)] == [90, 90, 2, 90]  # 2 films in 6 micro-batches
    assert_same_losses(run, reference)
    ours, theirs = (tensors_of(folder / "checkpoints" / "step-00000004") for folder in (run, reference))
    averages = {name for name in theirs if name.startswith("ema.")}
    assert averages
    assert ours.keys() == theirs.keys() - (averages if strategy == "zero3" else set())
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=0, check_stride=False)
    if strategy != "zero3":  # where averages are refused
        assert_same_evaluations(run, reference)
        exported = load_file(run / "model.safetensors")
        name = "poster.network.layer1.0.conv1.weight"
        assert torch.equal(exported[name], ours[f"ema.{name}"])
        assert not torch.equal(exported[name], ours[f"model.{name}"])


@pytest.mark.parametrize("strategy", COMPRESSED)
def test_gradients_that_travel_in_bf16_cost_three_digits_and_no_more(strategy: str, two: Path) -> None:
    plain, compressed = rows(two / strategy)[:6], rows(two / f"{strategy} compressed")
    norms = [[row["grad_norm"] for row in told] for told in (compressed, plain)]
    assert norms[0] != norms[1]  # it was done
    np.testing.assert_allclose(*norms, rtol=1e-2)
    np.testing.assert_allclose(*[[row["loss"] for row in told] for told in (compressed, plain)], atol=1e-3)


@pytest.mark.parametrize("strategy", SPREAD)
def test_four_ranks_with_synchronised_batch_norm_learn_what_one_process_learns(
    strategy: str, four: Path, alone: Path
) -> None:
    assert_same_training(four / strategy, alone / "sync", STEPS)
    assert_same_evaluations(four / strategy, alone / "sync")
    assert_same_checkpoint(four / strategy, alone / "sync", STEPS)


@pytest.mark.parametrize("strategy", SPREAD)
def test_another_strategy_on_more_ranks_goes_on_from_a_checkpoint(strategy: str, four: Path, alone: Path) -> None:
    run = four / f"{strategy} then {NEXT[strategy]}"
    assert_same_training(run, alone / "longer", MORE)
    assert_same_checkpoint(run, alone / "longer", MORE)


@pytest.fixture(scope="module")
def one(two: Path, sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single rank goes on from two ranks: plain, and with strategies that would spread what there is."""
    folder = tmp_path_factory.mktemp("one")
    lines = []
    for name, more in (
        ("fsdp", ("--parallel.strategy", "single")),
        ("zero3", ("--parallel.strategy", "single")),
        ("ddp", ("--parallel.strategy", "fsdp")),
        ("zero1", ("--parallel.strategy", "zero2", "--parallel.offload_optimizer", "true")),
    ):
        shutil.copytree(two / name, folder / name)
        lines.append(options(sample_shards, folder / name, *RUN, *STORED, "--train.steps", MORE, *more))
    run_ranks(folder / "ranks", 1, lines)
    return folder


@pytest.mark.parametrize("strategy", ["fsdp", "zero3", "ddp", "zero1"])
def test_one_rank_goes_on_from_any_strategys_checkpoint(strategy: str, one: Path, alone: Path) -> None:
    assert_same_training(one / strategy, alone / "longer", MORE)
    assert_same_checkpoint(one / strategy, alone / "longer", MORE)
