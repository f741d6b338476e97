"""The first path a user takes: films -> shards -> training -> evaluation -> prediction, through the commands."""

import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import Processes, losses, options, rows
from once import tell

from genre_dist import cli
from genre_dist.catalogue.catalogue import poster_file
from genre_dist.config.files import parse_config
from genre_dist.metrics.measures import metrics
from genre_dist.parallel.world import World
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import Rows
from genre_dist.train import main as train_main
from genre_dist.training.experiment import set_up
from genre_dist.training.step import agree

RESNET = ("--model.poster.arch", "resnet18", "--data.image_size", 48, "--model.text.hidden", 16)
MEMBERS = ("overview", "poster")
LEAVE_OUT = ("--model.missing", "leave_out")


class Walked(NamedTuple):
    """What the commands left behind."""

    catalogue: Path
    shards: Path
    run: Path
    poster: Path
    """Of the first film of the test split."""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Walked:
    """sample -> pack -> inspect --verify -> train, each a process of its own, as typed."""
    tell(pytestconfig, "first path: sample, pack, inspect and train as typed: half a minute")
    folder = tmp_path_factory.mktemp("first")
    catalogue, shards, run = folder / "catalogue", folder / "shards", folder / "run"
    genre_dist = str(Path(sys.executable).with_name("genre-dist"))
    more = ("--data.global_batch", 16, "--train.steps", 30, "--optim.warmup_steps", 0)
    commands = [
        [genre_dist, "sample", "--films", "160", "--seed", "4", "--out", str(catalogue)],
        [genre_dist, "pack", "--catalogue", str(catalogue), "--out", str(shards), "--size", "56", "--workers", "1"],
        [genre_dist, "inspect", str(shards), "--verify"],
        [sys.executable, "-m", "genre_dist.train", *options(shards, run, *RESNET, *more)],
    ]
    for number, command in enumerate(commands):
        with Processes(folder / f"log{number}") as process:
            process.start(command)
            process.succeed(150)
            said = process.output()
        if number < 2:
            assert "next: genre-dist" in said  # each stage says which comes next
    first = stored_ids(SplitIndex(load_manifest(shards), "test", MEMBERS))[0]
    return Walked(catalogue, shards, run, poster_file(catalogue, first))


def stored_ids(index: SplitIndex) -> list[int]:
    """The films of a split that have both media, in stored order."""
    return [
        int(film)
        for number, size in enumerate(index.sizes)
        for film in index.ids(Rows(np.full(size, number), np.arange(size)))
    ]


def check_evaluation(run: Path, shards: Path, split: str) -> None:
    """The two files of an evaluation keep their contract and agree with each other and with the shards."""
    manifest = load_manifest(shards)
    table = pq.read_table(run / f"predictions-{split}.parquet")
    assert table.schema.field("tmdb_id").type == pa.int64()
    assert table.schema.field("logits").type == pa.list_(pa.float32())
    assert table.schema.field("labels").type == pa.list_(pa.bool_())
    assert table["tmdb_id"].to_pylist() == stored_ids(SplitIndex(manifest, split, MEMBERS))
    logits, labels = (np.array(table[name].to_pylist()) for name in ("logits", "labels"))
    assert logits.shape == labels.shape == (len(table), len(manifest.genres)) == (len(table), 19)
    told = json.loads((run / f"metrics-{split}.json").read_text())
    again = metrics(logits.astype(np.float32), labels, [genre.name for genre in manifest.genres])
    assert {key: told[key] for key in again} == again
    assert told["split"] == split
    # sum over genres, softplus for the stable form of the binary cross-entropy
    loss = (np.logaddexp(0, logits) - logits * labels).mean()
    assert told["loss"] == pytest.approx(loss, rel=1e-5)
    assert labels.sum(axis=0).tolist() == manifest.genre_counts[split]


# --- the path itself


def test_the_loss_falls(walked: Walked) -> None:
    found = list(losses(walked.run).values())
    assert len(found) == 30
    assert np.mean(found[-5:]) < 0.75 * np.mean(found[:3])


def test_a_finished_run_has_all_it_is_used_by(walked: Walked) -> None:
    names = {path.name for path in walked.run.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "model.json", "vocabulary.txt"}
    assert "thresholds.json" in names
    for split in ("val", "test"):
        check_evaluation(walked.run, walked.shards, split)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluating_again_gives_the_same_files(split: str, walked: Walked) -> None:
    files = [walked.run / f"predictions-{split}.parquet", walked.run / f"metrics-{split}.json"]
    before = pq.read_table(files[0]), json.loads(files[1].read_text())
    for file in files:
        file.unlink()
    assert cli.main(["evaluate", str(walked.run), "--split", split]) == 0
    check_evaluation(walked.run, walked.shards, split)
    after = pq.read_table(files[0]), json.loads(files[1].read_text())
    assert after[0]["tmdb_id"] == before[0]["tmdb_id"]
    np.testing.assert_allclose(after[0]["logits"].to_pylist(), before[0]["logits"].to_pylist(), atol=1e-4)
    assert after[1].keys() == before[1].keys()


def test_two_ranks_evaluate_as_one(walked: Walked, tmp_path: Path) -> None:
    assert cli.main(["evaluate", str(walked.run), "--split", "test"]) == 0
    alone = pq.read_table(walked.run / "predictions-test.parquet")
    with Processes(tmp_path) as ranks:
        ranks.start_torchrun(2, ["evaluate", str(walked.run), "--split", "test"], module="genre_dist.cli")
        ranks.succeed(90)
    together = pq.read_table(walked.run / "predictions-test.parquet")
    assert together["tmdb_id"] == alone["tmdb_id"]
    assert together["labels"] == alone["labels"]
    np.testing.assert_allclose(together["logits"].to_pylist(), alone["logits"].to_pylist(), atol=1e-4)


# --- one film


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[tuple[str, float]]:
    """Genres and probabilities as `predict` prints them."""
    capsys.readouterr()
    assert cli.main(["predict", *arguments]) == 0
    lines = [line.strip().split("%", 1) for line in capsys.readouterr().out.splitlines()]
    return [(genre.removesuffix("  named").strip(), float(share) / 100) for share, genre in lines]


def test_a_film_is_predicted_from_poster_and_overview_as_it_was_evaluated(
    walked: Walked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(walked.run / "predictions-test.parquet").to_pylist()[0]
    films = pq.read_table(walked.catalogue / "movies.parquet").to_pylist()
    (film,) = [film for film in films if film["tmdb_id"] == table["tmdb_id"]]
    poster = tmp_path / "poster.jpg"  # as it was packed: its own would differ by one more pass through JPEG
    with tarfile.open(walked.shards / load_manifest(walked.shards).shards_of("test")[0].file) as tar:
        member = tar.extractfile(f"{film['tmdb_id']}.jpg")
        assert member is not None
        poster.write_bytes(member.read())
    ranked = said(capsys, str(walked.run), "--poster", str(poster), "--overview", film["overview"])
    probabilities = [probability for _, probability in ranked]
    assert probabilities == sorted(probabilities, reverse=True)
    names = [genre.name for genre in load_manifest(walked.shards).genres]
    expected = dict(zip(names, 1 / (1 + np.exp(-np.array(table["logits"]))), strict=True))
    assert dict(ranked) == {name: pytest.approx(value, abs=0.005) for name, value in expected.items()}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--overview", "A ship sails."], "--poster"),
        (["--overview", "A ship sails.", "--poster", "nowhere.jpg"], "nowhere.jpg"),
        (["--poster", __file__, "--overview", "A ship sails."], Path(__file__).name),
        (["--poster", "POSTER"], "--overview"),
    ],
)
def test_what_is_missing_for_a_prediction_is_named(
    arguments: list[str], named: str, walked: Walked, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(walked.poster) if argument == "POSTER" else argument for argument in arguments]
    capsys.readouterr()
    assert cli.main(["predict", str(walked.run), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_text_only_model_needs_no_poster(walked: Walked, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--model.poster.arch", "none", "--data.global_batch", 16, "--train.steps", 2)
    assert train_main(options(walked.shards, tmp_path / "text", *base)) == 0
    ranked = said(capsys, str(tmp_path / "text"), "--overview", "A detective hunts a murderer.")
    assert len(ranked) == 19
    assert len(said(capsys, str(tmp_path / "text"), "--overview", "")) == 19  # no word is a text too


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_folder_that_is_no_run_is_told(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    assert "not a run" in line


# --- what is trained, and on what


def test_every_trainable_tensor_of_an_end_to_end_model_receives_gradient(walked: Walked, tmp_path: Path) -> None:
    arguments = options(walked.shards, tmp_path, *RESNET, "--data.global_batch", 16, "--data.micro_batch", 8)
    config = parse_config(arguments).config
    experiment = set_up(config, World(0, 1, torch.device("cpu")))
    gradients: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[[torch.Tensor], None]:
        return lambda gradient: gradients.__setitem__(name, gradients.get(name, 0) + gradient.abs())

    names = [name for name, parameter in experiment.model.named_parameters() if parameter.requires_grad]
    assert len(names) == len(list(experiment.model.parameters()))  # nothing is frozen
    for name, parameter in experiment.model.named_parameters():
        parameter.register_hook(note(name))
    experiment.model.train()
    before = {name: value.detach().clone() for name, value in experiment.model.named_parameters()}
    batches = experiment.stream.batches()
    micro_batches = next(batches)
    counts = agree(experiment.world, micro_batches, stop=False, save=False)
    experiment.take(counts, 0, micro_batches, 8)
    batches.close()
    assert sorted(gradients) == sorted(names)
    assert [name for name in names if not gradients[name].any()] == []
    after = dict(experiment.model.named_parameters())
    assert [name for name in names if torch.equal(before[name], after[name])] == []


def test_a_combined_run_on_films_that_may_lack_posters_says_how_many_it_leaves_out(
    sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = ["pack", "--catalogue", str(sample_catalogue), "--out", str(tmp_path / "shards"), "--size", "40"]
    assert cli.main([*pack, "--require", "overview", "--workers", "1"]) == 0
    manifest = load_manifest(tmp_path / "shards")
    lacking = {split: manifest.samples(split) - manifest.samples(split, MEMBERS) for split in ("train", "val", "test")}
    assert lacking["train"] > 0
    capsys.readouterr()
    run = tmp_path / "run"
    assert (
        train_main(options(tmp_path / "shards", run, *LEAVE_OUT, "--data.global_batch", 32, "--train.epochs", 1)) == 0
    )
    assert f"{lacking['train']} of the split lack one and are left out" in capsys.readouterr().out
    assert sum(row["samples"] for row in rows(run)) == manifest.samples("train", MEMBERS)
    for split in ("val", "test"):
        told = json.loads((run / f"metrics-{split}.json").read_text())
        assert (told["left_out"], told["films"]) == (lacking[split], manifest.samples(split, MEMBERS))


def test_shards_with_another_vocabulary_are_refused(
    walked: Walked, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (walked.run / "metrics-test.json").read_bytes()
    capsys.readouterr()
    assert cli.main(["evaluate", str(walked.run), "--split", "test", "--shards", str(sample_shards)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(sample_shards) in line
    assert "vocabulary" in line
    assert (walked.run / "metrics-test.json").read_bytes() == before


def test_a_poster_only_run_can_be_evaluated_on_shards_with_another_vocabulary(
    walked: Walked, sample_shards: Path, tmp_path: Path
) -> None:
    base = ("--model.text.arch", "none", "--data.global_batch", 16, "--train.steps", 2)
    assert train_main(options(walked.shards, tmp_path / "run", *base)) == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "--split", "test", "--shards", str(sample_shards)]) == 0
