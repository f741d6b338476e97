"""A user fine-tunes a transformer: pack with its tokenizer, train on two ranks, evaluate, predict, explain, export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import losses, options, rows, train
from tiny_text import TEXTS, write_bert, write_tokenizer

from genre_dist import cli
from genre_dist.baselines import BASELINES
from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.explain.attribution import Explainer
from genre_dist.inference.trained_model import load_run
from genre_dist.packing.catalogue_rows import COLUMNS
from genre_dist.stream.device_feed import FieldInput
from genre_dist.stream.manifest import load_manifest
from genre_dist.train import main as train_main

pytest.importorskip("transformers")
SHORT = ("--data.global_batch", 32, "--train.steps", 4, "--model.text.pooling", "mean", "--optim.text_lr", 1e-3)


@pytest.fixture(scope="module")
def folder(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shards` packed with the tokenizer of a model that is gone afterwards, and a `run` on two ranks."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    bert = write_bert(folder / "bert", [row["overview"] or "" for row in read_rows(sample_catalogue, COLUMNS)])
    command = ["pack", "--catalogue", str(sample_catalogue), "--out", str(folder / "shards"), "--size", "72"]
    assert cli.main([*command, "--tokenizer", str(bert)]) == 0
    codes, said = train(folder / "log", 2, arguments(folder))
    assert codes == [0, 0], said
    assert "text encoder hf:" in said
    bert.rename(folder / "moved")
    return folder


def arguments(folder: Path, *more: object, run: str = "run", arch: Path | None = None) -> list[str]:
    arch = arch or folder / "bert"
    return options(folder / "shards", folder / run, "--model.text.arch", f"hf:{arch}", *SHORT, *more)


@pytest.fixture
def moved(folder: Path) -> Path:
    """The model's folder under another name."""
    return folder / "moved"


def test_a_run_is_evaluated_and_predicts_without_the_folder_it_began_from(
    folder: Path, sample_catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (folder / "bert").exists()
    trained = pq.read_table(folder / "run" / "predictions-test.parquet")["logits"].to_pylist()
    assert cli.main(["evaluate", str(folder / "run"), "--split", "test"]) == 0
    again = pq.read_table(folder / "run" / "predictions-test.parquet")["logits"].to_pylist()
    torch.testing.assert_close(torch.tensor(again), torch.tensor(trained), atol=1e-4, rtol=0)
    out = folder / "predictions"
    assert cli.main(["predict", str(folder / "run"), "--catalogue", str(sample_catalogue), "--out", str(out)]) == 0
    rows = {row["tmdb_id"]: row for part in out.glob("part-*.parquet") for row in pq.read_table(part).to_pylist()}
    table = pq.read_table(folder / "run" / "predictions-test.parquet").to_pylist()
    for row in table:  # the same tokens, whether packed or made from the text; posters were packed as JPEGs once more
        assert rows[row["tmdb_id"]]["logits"] == pytest.approx(row["logits"], abs=0.01)
    capsys.readouterr()
    film = next(film for film in read_rows(sample_catalogue) if rows[film["tmdb_id"]]["left_out"] is None)
    poster = str(poster_file(sample_catalogue, film["tmdb_id"]))
    assert cli.main(["predict", str(folder / "run"), "--poster", poster, "--overview", film["overview"]]) == 0
    assert "%" in capsys.readouterr().out


def test_explain_names_whole_words(folder: Path) -> None:
    out = folder / "explanation"
    command = ["explain", str(folder / "run"), "--split", "test", "--out", str(out), "--count", "3", "--no_ablation"]
    assert cli.main(command) == 0
    told = json.loads((out / "explanation.json").read_text())
    for film in told["films"]:
        for genre in film["explained"]:
            words = [word for word, _ in genre["words"]]
            assert [words[0], words[-1]] == ["[CLS]", "[SEP]"]
            assert not any(word.startswith("##") for word in words)


def test_words_add_up_to_what_the_text_changes(folder: Path) -> None:
    run = load_run(folder / "run", torch.device("cpu"))
    tokens = torch.from_numpy(run.tokenizer.encode("a detective hunts a killer")).long()[None]
    poster, lengths = FieldInput(torch.zeros(1, 3, 32, 32)), np.array([tokens.shape[1]])
    fields = {"poster": poster, "text": FieldInput(tokens, lengths)}
    told = Explainer(run.model, 32)(fields, 2)
    with torch.no_grad():
        effect = run.model(fields) - run.model(fields | {"text": FieldInput(torch.zeros_like(tokens), lengths)})
    words = told.words["text"]
    assert words.sum() == pytest.approx(effect[0, 2].item(), abs=0.1 * float(abs(words).sum()) + 1e-5)


def test_an_export_takes_tokenizer_and_architecture_along(folder: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(folder / "run"), "--out", str(tmp_path / "out")]) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "text_encoder.json", "model.safetensors"} <= files
    assert load_run(tmp_path / "out", torch.device("cpu")).tokenizer.closing == 1
    assert cli.main(["export", str(folder / "run"), "--out", str(tmp_path / "last"), "--which", "last"]) == 0
    assert list(load_run(tmp_path / "last", torch.device("cpu")).model.text_encoders) == ["text"]
    damaged = Path(shutil.copytree(tmp_path / "out", tmp_path / "damaged"))
    content = (damaged / "text_encoder.json").read_text()
    (damaged / "text_encoder.json").write_text(content.replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    with pytest.raises(ValueError, match="changed since it was written"):
        load_run(damaged, torch.device("cpu"))


def test_a_run_starts_from_another_runs_text_encoder(folder: Path, moved: Path) -> None:
    weights = ("--model.text.weights", folder / "run" / "model.safetensors", "--train.steps", 1, "--optim.text_lr", 0)
    assert train_main(arguments(folder, *weights, run="second", arch=moved)) == 0
    first, second = (
        load_run(folder / name, torch.device("cpu")).model.text_encoders["text"] for name in ("run", "second")
    )
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)


def test_a_stopped_run_goes_on_with_the_same_losses_and_with_other_rates(folder: Path, moved: Path) -> None:
    saved = ("--checkpoint.every_steps", 2, "--optim.schedule", "constant", "--run.seed", 3)
    whole, halves = folder / "whole", folder / "halves"
    assert train_main(arguments(folder, *saved, run="whole", arch=moved)) == 0
    assert train_main(arguments(folder, *saved, "--train.steps", 2, run="halves", arch=moved)) == 0
    assert train_main(arguments(folder, *saved, "--train.steps", 4, run="halves", arch=moved)) == 0
    assert list(losses(halves).values()) == pytest.approx(list(losses(whole).values()), abs=1e-5)
    slower = ("--train.steps", 5, "--optim.text_layer_decay", 0.5)
    assert train_main(arguments(folder, *saved, *slower, run="halves", arch=moved)) == 0
    assert [row["lr_text"] for row in rows(halves)] == pytest.approx([1e-3] * 4 + [0.5e-3])
    assert train_main(arguments(folder, *saved, "--model.text.pooling", "max", run="halves", arch=moved)) == 2


def test_a_stopped_run_goes_on_without_the_folder_it_began_from(
    folder: Path, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert = Path(shutil.copytree(moved, tmp_path / "bert"))
    saved = ("--checkpoint.every_steps", 2, "--optim.schedule", "constant", "--model.text.dropout", 0.2)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train_main(arguments(folder, *saved, run=str(whole), arch=bert)) == 0
    assert train_main(arguments(folder, *saved, "--train.steps", 2, run=str(halves), arch=bert)) == 0
    shutil.copytree(halves, tmp_path / "unknown")
    shutil.rmtree(bert)
    assert train_main(arguments(folder, *saved, run=str(tmp_path / "new"), arch=bert)) == 2
    assert "bert: no file or folder" in capsys.readouterr().err
    assert train_main([*arguments(folder, *saved, run=str(halves), arch=bert), "--dry_run"]) == 0
    assert train_main(arguments(folder, *saved, run=str(halves), arch=bert)) == 0
    assert losses(halves) == losses(whole)
    assert f"arch: hf:{bert}" in (halves / "config.yaml").read_text()
    assert train_main(arguments(folder, *saved, run=str(halves), arch=bert)) == 0  # finished
    (tmp_path / "unknown" / "text_encoder.json").unlink()
    assert train_main(arguments(folder, *saved, run=str(tmp_path / "unknown"), arch=bert)) == 2
    assert "bert: no file or folder" in capsys.readouterr().err


def test_an_lstm_reads_a_tokenizers_tokens(folder: Path) -> None:
    run = folder / "lstm"
    assert train_main(options(folder / "shards", run, "--data.global_batch", 32, "--train.steps", 2)) == 0
    assert cli.main(["evaluate", str(run), "--split", "test"]) == 0
    assert not (run / "text_encoder.json").exists()


def test_other_tokens_are_refused(
    folder: Path, moved: Path, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = options(sample_shards, tmp_path / "run", "--model.text.arch", f"hf:{moved}", *SHORT)
    assert train_main(words) == 2
    assert "was packed with words, which this encoder cannot read; pack into another folder" in capsys.readouterr().err
    other = Path(shutil.copytree(moved, tmp_path / "other"))
    write_tokenizer(other, TEXTS[:2])
    assert train_main(arguments(folder, run="refused", arch=other)) == 2
    assert "packed with another tokenizer than this encoder's" in capsys.readouterr().err
    assert not (folder / "refused" / "config.yaml").exists()
    assert cli.main(["evaluate", str(folder / "run"), "--shards", str(sample_shards)]) == 2
    assert "packed with another vocabulary" in capsys.readouterr().err


def test_long_texts_are_counted(folder: Path, moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = write_bert(folder / "short", max_position_embeddings=16)
    shutil.copy(moved / "tokenizer.json", short)
    (short / "model.safetensors").unlink()
    config = json.loads((moved / "config.json").read_text()) | {"max_position_embeddings": 16}
    (short / "config.json").write_text(json.dumps(config))
    more = ("--model.text.weights", "none", "--train.steps", 1)
    assert train_main(arguments(folder, *more, run="cut", arch=short)) == 0
    told = capsys.readouterr().out
    assert "texts are longer than the 16 positions of the text encoder and are cut there; data.max_tokens 16" in told


def test_dry_run_and_plan_count_it(folder: Path, moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main([*arguments(folder, run="dry", arch=moved), "--dry_run"]) == 0
    text = load_run(folder / "run", torch.device("cpu")).model.text_encoders["text"]
    counted = f"{'text':<18}{sum(parameter.numel() for parameter in text.parameters()):,} parameters trained"
    assert counted in capsys.readouterr().out
    assert not (folder / "dry").exists()
    settings = arguments(folder, run="dry", arch=moved)
    assert cli.main(["plan", "--gpu_memory", "24GB", "--", *settings]) == 0
    assert counted in capsys.readouterr().out
    assert cli.main(["plan", "--time", "H100", "--micro_batch", "8", "--", *settings]) == 0
    said = capsys.readouterr().out
    assert "pretrained text encoder" in said
    assert "for texts of 55 tokens" in said


def test_frozen_encoders_are_computed_once(folder: Path, moved: Path) -> None:
    frozen = ("--model.text.frozen", "true", "--model.poster.frozen", "true", "--data.crop_scale", "[1,1]")
    runs = []
    for cache in ("on", "off"):
        run = f"frozen-{cache}"
        assert train_main(arguments(folder, *frozen, "--train.cache_encodings", cache, run=run, arch=moved)) == 0
        runs.append([json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()])
    told = [[row["loss"] for row in rows if row["kind"] == "train"] for rows in runs]
    assert told[0] == pytest.approx(told[1], abs=1e-4)


def test_explore_and_baselines_read_its_texts(folder: Path) -> None:
    assert cli.main(["explore", str(folder / "shards"), "--out", str(folder / "explored")]) == 0
    kind = next(name for name, kind in BASELINES.items() if kind.features != "vectors")
    command = ["baseline", str(folder / "shards"), "--out", str(folder / "baseline"), "--kind", kind]
    assert cli.main(command) == 0
    assert load_manifest(folder / "shards").text["vectors"] is None
