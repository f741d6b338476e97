"""One rank runs out of memory: all take the step again in smaller pieces, with the losses of a run that never did."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Processes, losses, options, rows, train
from torch import nn

from genre_dist.config import Config
from genre_dist.parallel.world import World
from genre_dist.stream.batch import Batch, part_of
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.training.backoff import NOTE, Backoff, split
from genre_dist.training.step import OutOfMemoryTogetherError, StepResult

MORE = ("--data.global_batch", 16, "--model.poster.batch_norm", "eval", "--data.workers", 0)


def run_short(log: Path, rank: int, step: int, arguments: list[str]) -> tuple[list[int], str]:
    with Processes(log) as ranks:
        ranks.start_ranks(2, [str(rank), str(step), *arguments], module="short_of_memory")
        return ranks.wait(90), ranks.output()


@pytest.fixture(scope="module")
def quiet(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that never run out."""
    folder = tmp_path_factory.mktemp("quiet")
    codes, output = train(folder / "log", 2, options(sample_shards, folder / "run", *MORE, "--train.steps", 24))
    assert codes == [0, 0], output
    return folder / "run"


def test_all_ranks_take_the_step_again_in_halves(quiet: Path, sample_shards: Path, tmp_path: Path) -> None:
    """Twice, the second time with gradients of a half at hand. In an epoch's last step some pieces are empty."""
    run = tmp_path / "run"
    codes, output = run_short(tmp_path / "log", 1, 3, options(sample_shards, run, *MORE, "--train.steps", 24))
    assert codes == [0, 0], output
    assert losses(run) == pytest.approx(losses(quiet), rel=1e-5, abs=1e-6)
    assert [row["samples"] for row in rows(run)] == [row["samples"] for row in rows(quiet)]
    for key in ("grad_norm", "bad_samples", "epoch"):
        np.testing.assert_allclose([r[key] for r in rows(run)], [r[key] for r in rows(quiet)], rtol=1e-4, err_msg=key)
    for piece in (4, 2):
        assert output.count(f"out of memory: micro-batches of {piece} from now on") == 1
    assert (run / NOTE).read_text() == "2"
    assert "micro_batch: auto" in (run / "config.yaml").read_text()


def test_where_a_pass_exchanges_the_group_starts_again_with_halves(
    quiet: Path, sample_shards: Path, tmp_path: Path
) -> None:
    """With sharded weights the other ranks wait inside the pass and cannot be told; torchrun ends and restarts them."""
    run = tmp_path / "run"
    more = ("--parallel.strategy", "fsdp", "--train.steps", 24, "--checkpoint.every_steps", 2)
    arguments = ["1", "4", *options(sample_shards, run, *MORE, *more)]
    with Processes(tmp_path / "log") as ranks:
        ranks.start_torchrun(2, arguments, module="short_of_memory", launcher=("--max-restarts=1",))
        ranks.succeed(150)
        output = ranks.output()
    told = "the run goes on from its newest checkpoint with micro-batches of 4"
    said = [line for line in output.splitlines() if told in line]
    assert sum(line.startswith("error: out of memory") for line in said) == 1
    assert all("out of memory" in line for line in said)  # the other rank says whom it has lost, and why
    assert losses(run) == pytest.approx(losses(quiet), rel=1e-4)
    assert (run / NOTE).read_text() == "4"


def test_a_single_sample_that_does_not_fit_is_one_line(sample_shards: Path, tmp_path: Path) -> None:
    more = ("--data.global_batch", 1, "--data.workers", 0, "--train.steps", 3)
    with Processes(tmp_path / "log") as ranks:
        ranks.start_ranks(1, ["0", "2", *options(sample_shards, tmp_path / "run", *more)], module="short_of_memory")
        assert ranks.wait(90) == [2], ranks.output()
        (line,) = [line for line in ranks.output().splitlines() if line.startswith("error: ")]
    assert "micro-batches of one sample; `genre-dist plan` shows what fits" in line


def test_statistics_that_a_failed_attempt_has_moved_are_put_back(sample_shards: Path, tmp_path: Path) -> None:
    batch = ShardReader(load_manifest(sample_shards), "train", ("overview",), 64).read(
        Rows(np.zeros(8, int), np.arange(8))
    )
    norm = nn.BatchNorm1d(3)
    world = World(0, 1, torch.device("cpu"))
    compute = SimpleNamespace(micro_batch=8, splits=True)
    experiment: Any = SimpleNamespace(config=Config(), world=world, compute=compute, model=norm)
    seen: list[dict[str, torch.Tensor]] = []

    def take(pieces: list[Batch], samples: int, **deferred: Any) -> StepResult:
        seen.append({name: buffer.clone() for name, buffer in norm.named_buffers()})
        norm(torch.randn(6, 3) + 5)
        if len(seen) < 3:
            raise OutOfMemoryTogetherError
        assert [len(piece.ids) for piece in pieces] == [2, 2, 2, 2]
        return StepResult(torch.zeros(5), torch.zeros(()))

    Backoff(experiment, tmp_path).step([batch], take, seed=0)
    assert all(torch.equal(seen[0][name], each[name]) for each in seen for name in seen[0])
    assert norm.num_batches_tracked == 1  # the attempt that was not in vain


def test_pieces_are_the_batch_in_order(sample_shards: Path) -> None:
    reader = ShardReader(load_manifest(sample_shards), "train", ("poster", "overview"), 64)
    batch = reader.read(Rows(np.zeros(7, int), np.arange(7)))
    batch.faults.append("a line")
    pieces = split(batch, 8, 2)
    assert [len(piece.ids) for piece in pieces] == [2, 2, 2, 1]
    for name in ("ids", "labels", "weights", "images", "tokens", "lengths"):
        np.testing.assert_array_equal(np.concatenate([getattr(piece, name) for piece in pieces]), getattr(batch, name))
    assert [piece.faults for piece in pieces] == [["a line"], [], [], []]
    assert len(part_of(batch, slice(0, 0)).ids) == 0
    assert [len(piece.ids) for piece in split(part_of(batch, slice(0, 1)), 8, 4)] == [1, 0]
    same: list[Batch] = split(batch, 8, 8)
    assert same == [batch]
