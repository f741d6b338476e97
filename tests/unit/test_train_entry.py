"""`python -m genre_dist.train`: what a user sees who asks for something that cannot be."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import losses, options, rows, snapshot

from genre_dist.config.files import load_config
from genre_dist.train import main

pytestmark = pytest.mark.slow  # whole runs


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect exit code 2, and return the one line on stderr."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


# --- no shards


def test_without_shards_it_says_how_to_make_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(options(tmp_path / "nowhere", tmp_path / "run"), capsys)
    assert "genre-dist pack" in line
    assert str(tmp_path / "nowhere") in line
    assert not (tmp_path / "run").exists()


def test_without_arguments_in_an_empty_folder_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "genre-dist pack" in fails([], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean `data.global_batch`?" in fails(["--data.global_bach", "3"], capsys)


# --- dry run


def test_a_dry_run_tells_what_would_be_trained_and_writes_nothing(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {str(path) for path in sample_shards.rglob("*")}
    arguments = options(sample_shards, tmp_path / "run", "--data.global_batch", 16, "--data.micro_batch", 4)
    assert main([*arguments, "--train.epochs", "3", "--model.poster.frozen", "true", "--dry_run"]) == 0
    told = capsys.readouterr().out
    films = int(re.search(r"(\d+) films to train on", told)[1])  # type: ignore[index]
    steps = -(-films // 16)
    assert f"{3 * steps} ({steps} an epoch, 3.0 epochs)" in told
    assert "16 = 1 ranks x 4 accumulated x micro-batch 4" in told
    assert re.search(r"text\s+[\d,]+ parameters trained, 0 frozen", told)
    assert re.search(r"poster\s+0 parameters trained, 824 frozen", told)  # two convolutions and a BatchNorm
    assert re.search(r"heads\s+[\d,]+ parameters trained, 0 frozen", told)
    assert re.search(r"memory per rank\s+\d+\.\d+ GB", told)
    assert list(tmp_path.iterdir()) == []
    assert {str(path) for path in sample_shards.rglob("*")} == before


def test_a_dry_run_of_several_ranks_derives_their_shares(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(options(sample_shards, tmp_path, "--data.global_batch", 16, "--dry_run")) == 0
    assert "16 = 4 ranks x 1 accumulated x micro-batch 4" in capsys.readouterr().out


# --- what does not fit together


@pytest.mark.parametrize("dry", [False, True])
def test_a_world_that_does_not_divide_the_batch(
    dry: bool, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    arguments = options(sample_shards, tmp_path / "run", "--data.global_batch", 16)
    line = fails([*arguments, *["--dry_run"] * dry], capsys)
    assert "3 ranks cannot share data.global_batch=16" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry", [False, True])
def test_the_single_strategy_on_two_ranks(
    dry: bool, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = options(sample_shards, tmp_path / "run", "--parallel.strategy", "single")
    assert "parallel.strategy=single with 2 ranks" in fails([*arguments, *["--dry_run"] * dry], capsys)


def test_nothing_to_train(sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = options(sample_shards, tmp_path / "run", "--model.text.arch", "none", "--model.poster.arch", "none")
    assert "nothing to train" in fails(arguments, capsys)


def test_fewer_films_than_a_batch_that_must_be_full(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(sample_shards, tmp_path / "run", "--data.global_batch", 1024, "--data.last_batch", "drop")
    line = fails(arguments, capsys)
    assert "do not fill one global batch of 1024" in line


# --- weights


def test_weights_of_another_network(sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), path)
    arguments = options(sample_shards, tmp_path / "run", "--model.poster.arch", "resnet18")
    line = fails([*arguments, "--model.poster.weights", str(path)], capsys)
    assert str(path) in line
    assert "another architecture" in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_imagenet_weights_out_of_reach_name_both_ways_out(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object, **more: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    arguments = options(sample_shards, tmp_path / "run", "--model.poster.arch", "resnet18")
    line = fails([*arguments, "--model.poster.weights", "imagenet"], capsys)
    assert "resnet18" in line
    assert str(tmp_path / "hub") in line  # a copy put there
    assert "--model.poster.weights FILE" in line  # or another file


@pytest.mark.slow
def test_weights_of_another_runs_text_encoder_must_fit(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("--model.poster.arch", "none", "--train.steps", 1)
    assert main(options(sample_shards, tmp_path / "first", *base)) == 0
    weights = tmp_path / "first" / "model.safetensors"
    arguments = options(sample_shards, tmp_path / "second", *base, "--model.text.weights", weights)
    assert main([*arguments]) == 0
    line = fails([*arguments, "--model.text.hidden", "9", "--run.dir", str(tmp_path / "third")], capsys)
    assert str(weights) in line
    line = fails([*arguments, "--model.text.pooling", "max", "--run.dir", str(tmp_path / "third")], capsys)
    assert f"{weights} was trained with model.text.pooling=last" in line
    assert "pass --model.text.pooling last" in line


# --- what may be frozen


@pytest.mark.slow
def test_only_the_heads_can_be_trained(sample_shards: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = tmp_path / "run"
    frozen = ("--model.text.frozen", "true", "--model.poster.frozen", "true", "--data.global_batch", 8)
    arguments = options(sample_shards, run, *frozen, "--checkpoint.every_steps", 100)
    assert main([*arguments, "--train.steps", "1"]) == 0
    before = load_file(run / "model.safetensors")
    assert main([*arguments, "--train.steps", "4"]) == 0
    after = load_file(run / "model.safetensors")
    for name, tensor in after.items():
        if "num_batches" not in name:
            assert torch.equal(tensor, before[name]) != name.startswith("heads."), name
    assert sorted(losses(run)) == [1, 2, 3, 4]
    assert "lr_heads" in rows(run)[0]
    assert "lr_text" not in rows(run)[0]


# --- the run's folder


@pytest.mark.slow
def test_overwrite_deletes_a_run_but_no_other_folder(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("--model.poster.arch", "none", "--data.global_batch", 8)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("ten years of work")
    line = fails(options(sample_shards, tmp_path / "precious", *base, "--run.overwrite", "true"), capsys)
    assert "holds no run" in line
    assert (tmp_path / "precious" / "thesis.txt").exists()
    run = tmp_path / "run"
    assert main(options(sample_shards, run, *base, "--train.steps", 2)) == 0
    assert main(options(sample_shards, run, *base, "--train.steps", 1, "--run.overwrite", "true")) == 0
    assert list(losses(run)) == [1]
    # the copy in the run's folder continues the run, it does not delete it
    assert not load_config(run / "config.yaml").run.overwrite
    before = snapshot(run)
    assert main(["--config", str(run / "config.yaml")]) == 0
    assert snapshot(run) == before


def test_a_run_folder_that_cannot_be_made_is_named(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    line = fails(options(sample_shards, tmp_path / "file" / "run", "--model.poster.arch", "none"), capsys)
    assert str(tmp_path / "file" / "run") in line


def test_with_fewer_steps_than_are_done_the_run_is_refused(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("--model.poster.arch", "none", "--data.global_batch", 8)
    assert main(options(sample_shards, tmp_path / "run", *base, "--train.steps", 3)) == 0
    before = snapshot(tmp_path / "run")
    line = fails(options(sample_shards, tmp_path / "run", *base, "--train.steps", 2), capsys)
    assert "has done 3 steps, more than the 2 asked for" in line
    assert snapshot(tmp_path / "run") == before
