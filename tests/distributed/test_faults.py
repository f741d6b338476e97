"""What goes wrong in a run is named, on all ranks together, and never ends up in a checkpoint."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import checkpoints, losses, options, rows, tensors_of, train

from genre_dist.stream.index import SplitIndex
from genre_dist.stream.loader import TrainStream
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.train import main

MEMBERS = ("overview", "poster")
GLOBAL_BATCH = 8


def damage_posters(shards: Path, count: int, split: str = "train") -> list[tuple[str, int]]:
    """Overwrite the middle of the first posters of a split's first shard; returns (shard, film) of each."""
    shard = load_manifest(shards).shards_of(split)[0].file
    data = bytearray((shards / shard).read_bytes())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        posters = [member for member in tar if member.name.endswith(".jpg")][:count]
    for member in posters:
        data[member.offset_data : member.offset_data + member.size] = b"\x2a" * member.size
    (shards / shard).write_bytes(data)
    return [(shard, int(member.name.split(".")[0])) for member in posters]


def step_films(shards: Path, position: int) -> set[int]:
    reader = ShardReader(load_manifest(shards), "train", MEMBERS, 256)
    stream = TrainStream(reader, global_batch=GLOBAL_BATCH, micro_batch=GLOBAL_BATCH, seed=0)
    return set(stream.step_ids(position).tolist())


def assert_finite(run: Path) -> None:
    for name in checkpoints(run):
        for tensor, value in tensors_of(run / "checkpoints" / name).items():
            assert bool(value.isfinite().all()), f"{name}: {tensor}"


# --- numbers that run away


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_films_of_the_step(
    sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("--data.global_batch", GLOBAL_BATCH, "--train.steps", 12, "--optim.warmup_steps", 0)
    rates = ("--optim.text_lr", 1e20, "--optim.poster_lr", 1e20, "--optim.heads_lr", 1e20)
    arguments = options(sample_shards, run, *more, *rates, "--checkpoint.every_steps", 1, "--checkpoint.keep", 20)
    codes, output = train(tmp_path / "log", 2, arguments)
    assert codes == [2, 2], output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    step = max(losses(run), default=0) + 1
    for line in lines:
        assert f"step {step}" in line
        named = {int(word) for word in line.rpartition(":")[2].split()}
        assert named == step_films(sample_shards, step - 1)
    assert all(np.isfinite(loss) for loss in losses(run).values())
    assert_finite(run)


@pytest.mark.parametrize("every", [1, 100])
def test_weights_that_overflow_in_a_step_of_finite_loss_are_never_saved(
    every: int, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The very last step's update is seen by no loss any more."""
    run = tmp_path / "run"
    more = ("--data.global_batch", GLOBAL_BATCH, "--train.steps", 1, "--optim.warmup_steps", 0)
    arguments = options(sample_shards, run, *more, "--optim.heads_lr", 3e38, "--checkpoint.every_steps", every)
    assert main([*arguments, "--optim.weight_decay", "1e10"]) == 2
    assert "not finite" in capsys.readouterr().err
    assert checkpoints(run) == []
    assert not (run / "model.safetensors").exists()


def test_an_evaluation_that_is_not_finite_is_told_on_all_ranks(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite weights can still be too large for finite logits."""
    run = tmp_path / "run"
    more = ("--data.global_batch", GLOBAL_BATCH, "--train.steps", 1, "--optim.warmup_steps", 0)
    assert main(options(sample_shards, run, *more, "--optim.heads_lr", 1e30, "--optim.weight_decay", 0)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the loss on the val split is" in line


# --- samples that cannot be read


def test_a_damaged_poster_is_left_out_counted_and_named_and_the_run_finishes(
    shards_copy: Path, sample_shards: Path, tmp_path: Path
) -> None:
    damaged = damage_posters(shards_copy, 2)
    damage_posters(shards_copy, 1, "val")
    run = tmp_path / "run"
    more = ("--data.global_batch", GLOBAL_BATCH, "--train.epochs", 1, "--model.poster.batch_norm", "eval")
    codes, output = train(tmp_path / "log", 2, options(shards_copy, run, *more))
    assert codes == [0, 0], output
    films = load_manifest(sample_shards).samples("train", MEMBERS)
    assert sum(row["bad_samples"] for row in rows(run)) == 2
    assert sum(row["samples"] for row in rows(run)) == films - 2
    noted = (run / "faults.log").read_text().splitlines()
    assert len(noted) == 2
    for shard, film in damaged:
        assert any(shard in line and str(film) in line for line in noted)
        (step,) = [row for row in rows(run) if film in step_films(shards_copy, row["step"] - 1)]
        assert step["bad_samples"] >= 1
    (val,) = rows(run, "val")
    assert (val["bad_samples"], val["films"]) == (1, load_manifest(sample_shards).samples("val", MEMBERS))
    assert "val-" in next(line for line in output.splitlines() if "predicted from blanks" in line)


def test_too_many_damaged_samples_stop_the_run_and_what_was_done_stays(shards_copy: Path, tmp_path: Path) -> None:
    damaged = damage_posters(shards_copy, 30)
    run = tmp_path / "run"
    more = ("--data.global_batch", GLOBAL_BATCH, "--train.epochs", 2, "--checkpoint.every_steps", 1)
    codes, output = train(tmp_path / "log", 2, options(shards_copy, run, *more))
    assert codes == [2, 2], output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert all("data.max_bad_fraction" in line and "faults.log" in line and "inspect" in line for line in lines)
    named = (run / "faults.log").read_text()
    assert 8 < sum(str(film) in named for _, film in damaged) <= 30
    assert sum(row["bad_samples"] for row in rows(run)) <= 8  # it stopped at the step that was one too many
    assert checkpoints(run)[-1] == f"step-{max(losses(run)):08d}"


def test_too_many_damaged_films_in_evaluation_are_an_error_too(
    shards_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = damage_posters(shards_copy, 9, "val")
    run = tmp_path / "run"
    assert main(options(shards_copy, run, "--data.global_batch", GLOBAL_BATCH, "--train.steps", 1)) == 2
    told = capsys.readouterr().err
    assert all(f"film {film} at byte" in told for _, film in damaged)
    assert "error: 9 films of the val split could not be read, more than data.max_bad_fraction" in told
    assert not (run / "metrics-val.json").exists()
    assert checkpoints(run) == ["step-00000001"]  # what was trained stays


def test_a_shard_that_is_cut_off_is_named_too(shards_copy: Path, tmp_path: Path) -> None:
    shard = load_manifest(shards_copy).shards_of("train")[0].file
    index = SplitIndex(load_manifest(shards_copy), "train", MEMBERS)
    last = int(index.ids(Rows(np.array([0]), np.array([index.sizes[0] - 1])))[0])
    offset = int(index.records(Rows(np.array([0]), np.array([index.sizes[0] - 1])))[0]["offset"])
    (shards_copy / shard).write_bytes((shards_copy / shard).read_bytes()[: offset + 600])
    run = tmp_path / "run"
    assert main(options(shards_copy, run, "--data.global_batch", 16, "--train.epochs", 1)) == 0
    (line,) = (run / "faults.log").read_text().splitlines()
    assert shard in line
    assert str(last) in line
    assert f"at byte {offset}: the file ends" in line
    assert "truncated" in line
