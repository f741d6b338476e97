"""The number of ranks changes neither which films a step trains on nor what is learned from them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import losses, options, rows, train

from genre_dist import cli
from genre_dist.config import Config
from genre_dist.config.files import parse_config
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.train import main
from genre_dist.training.experiment import open_stream

GLOBAL_BATCH = 32
RESNET = (
    *("--model.poster.arch", "resnet18", "--model.poster.batch_norm", "eval", "--data.image_size", 32),
    *("--data.global_batch", GLOBAL_BATCH, "--train.epochs", 2, "--optim.warmup_steps", 0, "--run.seed", 5),
    *("--checkpoint.every_steps", "null", "--data.micro_batch", 8),  # accumulates 4 times on 1 rank, twice on 2
    # AdamW's first steps turn rounding errors of tiny gradients into whole steps: small ones keep the runs together
    *("--optim.poster_lr", 1e-5, "--optim.text_lr", 1e-3, "--optim.heads_lr", 1e-3),
)


class Runs(NamedTuple):
    """The same training on one rank and on two."""

    config: Config
    manifest: Manifest
    one: Path
    two: Path

    @property
    def folders(self) -> tuple[Path, Path]:
        return self.one, self.two


@pytest.fixture(scope="module")
def runs(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("agree")
    assert main(options(sample_shards, folder / "one", *RESNET)) == 0
    codes, output = train(folder / "log", 2, options(sample_shards, folder / "two", *RESNET))
    assert codes == [0, 0], output
    config = parse_config(options(sample_shards, folder, *RESNET)).config
    return Runs(config, load_manifest(sample_shards), folder / "one", folder / "two")


def test_the_batches_do_not_divide_the_epoch(runs: Runs) -> None:
    """Otherwise the tests below would show less than they claim."""
    films = runs.manifest.samples("train", ("overview", "poster"))
    assert films % GLOBAL_BATCH != 0
    assert films % GLOBAL_BATCH % 8 != 0  # nor do the micro-batches divide the last step


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_take_the_films_that_one_takes_in_every_step_of_two_epochs(runs: Runs, world: int) -> None:
    alone = open_stream(runs.config, runs.manifest, 1)
    streams = [open_stream(runs.config, runs.manifest, world, rank) for rank in range(world)]
    batches = [stream.batches() for stream in (alone, *streams)]
    seen: list[int] = []
    for position in range(2 * alone.steps_per_epoch):
        whole, *parts = [[int(i) for batch in next(stream) for i in batch.ids] for stream in batches]
        assert [i for part in parts for i in part] == whole
        assert whole == alone.step_ids(position).tolist()
        seen += whole
    for stream in batches:
        stream.close()
    epoch = len(seen) // 2
    assert sorted(seen[:epoch]) == sorted(seen[epoch:]) == sorted(set(seen))
    assert seen[:epoch] != seen[epoch:]


def test_the_order_that_is_printed_is_the_order_that_is_trained_in(
    runs: Runs, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["order", str(sample_shards), "--global_batch", str(GLOBAL_BATCH), "--seed", "5", "--epoch", "1"]
    printed = []
    for more in ([], ["--world", "2", "--rank", "0"], ["--world", "2", "--rank", "1"]):
        assert cli.main([*arguments, *more]) == 0
        lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [int(step) for step, _ in lines] == list(range(len(lines)))
        printed.append([[int(film) for film in ids.split()] for _, ids in lines])
    whole, first, second = printed
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    stream = open_stream(runs.config, runs.manifest, 1)
    epoch = stream.steps_per_epoch
    assert whole == [stream.step_ids(epoch + step).tolist() for step in range(epoch)]


def test_losses_and_gradients_of_every_step_agree(runs: Runs) -> None:
    one, two = (rows(folder) for folder in runs.folders)
    assert [row["step"] for row in two] == [row["step"] for row in one] == list(range(1, len(one) + 1))
    assert len(one) == 2 * open_stream(runs.config, runs.manifest, 1).steps_per_epoch
    for key, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3), ("samples", 0), ("epoch", 0), ("lr_text", 0)):
        found = [[row[key] for row in told] for told in (one, two)]
        np.testing.assert_allclose(*found, rtol=tolerance, atol=tolerance, err_msg=key)
    assert one[-1]["loss"] < 0.9 * one[0]["loss"]  # agreeing on nothing learned would be no feat


def test_samples_of_an_epoch_add_up_to_the_films(runs: Runs) -> None:
    films = runs.manifest.samples("train", ("overview", "poster"))
    for folder in runs.folders:
        for epoch in (0, 1):
            assert sum(row["samples"] for row in rows(folder) if row["epoch"] == epoch) == films


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluations_have_the_same_films_and_logits(runs: Runs, split: str) -> None:
    one, two = (pq.read_table(folder / f"predictions-{split}.parquet") for folder in runs.folders)
    assert two["tmdb_id"].to_pylist() == one["tmdb_id"].to_pylist()
    assert two["labels"].to_pylist() == one["labels"].to_pylist()
    np.testing.assert_allclose(one["logits"].to_pylist(), two["logits"].to_pylist(), atol=1e-4, rtol=1e-4)
    told = [rows(folder, split) for folder in runs.folders]
    assert [row["step"] for row in told[0]] == [row["step"] for row in told[1]]
    np.testing.assert_allclose([row["loss"] for row in told[0]], [row["loss"] for row in told[1]], atol=1e-4)


# --- uneven shares, down to none


@pytest.fixture(scope="module")
def few_films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose train split leaves one film for the last step of 8, and whose val split has two."""
    from genre_dist.catalogue.sample_films import make_sample
    from genre_dist.packing.pack import pack

    folder = tmp_path_factory.mktemp("few")
    make_sample(38, 11, folder / "catalogue", size=(32, 48))
    manifest = pack(folder / "catalogue", folder / "shards", size=40, workers=1)
    assert manifest.samples("train", ("overview", "poster")) % 8 == 1
    assert manifest.samples("val", ("overview", "poster")) == 2
    return folder / "shards"


@pytest.mark.parametrize("batch_norm", ["eval", "sync"])
def test_ranks_without_a_film_in_a_step_or_in_an_evaluation_take_part_and_nothing_hangs(
    few_films: Path, tmp_path: Path, batch_norm: str
) -> None:
    told = []
    for world in (1, 4):
        run = tmp_path / f"run{world}"
        more = ("--data.global_batch", 8, "--train.epochs", 2, "--model.poster.batch_norm", batch_norm)
        micro = ("--data.micro_batch", 8 // world)
        arguments = options(few_films, run, *more, *micro)
        codes, output = ([main(arguments)], "") if world == 1 else train(tmp_path / "log", world, arguments)
        assert codes == [0] * world, output
        told.append((rows(run), pq.read_table(run / "predictions-val.parquet").to_pydict(), losses(run)))
    (one, one_val, one_losses), (four, four_val, four_losses) = told
    assert [row["samples"] for row in one if row["samples"] < 8] == [1, 1]  # three of four ranks had none
    assert [row["samples"] for row in four] == [row["samples"] for row in one]
    assert four_losses == pytest.approx(one_losses, rel=1e-4)
    assert four_val["tmdb_id"] == one_val["tmdb_id"]
    assert len(four_val["tmdb_id"]) == 2  # so two ranks had none
    np.testing.assert_allclose(four_val["logits"], one_val["logits"], atol=1e-4)
