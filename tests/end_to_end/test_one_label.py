"""Articles with exactly one topic, from training to pages: softmax everywhere, and nobody speaks of films or genres."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import options, rows
from one_label import ARTICLES

from genre_dist.catalogue import sample_films
from genre_dist.catalogue.catalogue import read_rows
from genre_dist.catalogue.importing_samples import import_samples
from genre_dist.cli import main
from genre_dist.genres import GENRES
from genre_dist.inference.trained_model import load_run
from genre_dist.metrics.choosing import log_losses
from genre_dist.metrics.evaluation_files import declared_of, read_evaluation
from genre_dist.packing.pack import pack
from genre_dist.sample_ids import number_of_id
from genre_dist.train import main as train

SHORT = ("--train.steps", 20, "--data.global_batch", 16, "--data.workers", 0, "--train.eval_every_steps", 10)
NAME_OF_ID = {genre.id: genre.name for genre in GENRES}
WORDS = re.compile(r"\b(films?|genres?)\b", re.IGNORECASE)


class Walked(NamedTuple):
    """What a user has done with the articles, and what was printed."""

    folder: Path
    printed: str

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "net"


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    """Articles packed, trained on, evaluated, compared, explained, explored and predicted."""
    folder = tmp_path_factory.mktemp("articles")
    draw_genres = sample_films._draw_genres
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_films, "_draw_genres", lambda rng: draw_genres(rng)[:1])
        sample_films.make_sample(240, seed=3, out=folder / "films", size=(60, 90))
        articles = [
            {"key": str(row["tmdb_id"]), "topic": NAME_OF_ID[row["genre_ids"][0]], "overview": row["overview"]}
            for row in read_rows(folder / "films")
        ]
        (folder / "articles.jsonl").write_text("".join(f"{json.dumps(article)}\n" for article in articles))
        import_samples(
            folder / "articles.jsonl", ARTICLES, {"poster": [folder / "films/posters"]}, folder / "catalogue"
        )
        require = ("poster", "overview")
        pack(folder / "catalogue", folder / "shards", size=72, shard_size=50, workers=1, require=require)
        patch.setenv("COLUMNS", "160")
        shards, net, text = str(folder / "shards"), str(folder / "runs" / "net"), str(folder / "runs" / "text")
        capture = pytest.MonkeyPatch()  # what is printed by all of them
        printed: list[str] = []
        capture.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        try:
            tracked = ("--tracking.tensorboard", "true")
            assert train(options(shards, net, *SHORT, *tracked)) == 0
            more = ("--loss.kind", "focal", "--train.stop_metric", "accuracy", "--checkpoint.best_metric", "macro_f1")
            assert train(options(shards, text, *SHORT, *more, "--model.poster.arch", "none")) == 0
            svm = str(folder / "runs" / "svm")
            assert main(["baseline", shards, "--out", svm, "--kind", "svm_bow", "--workers", "1"]) == 0
            assert main(["evaluate", net, "--split", "test"]) == 0
            report = ["--out", str(folder / "report"), "--resamples", "50"]
            assert main(["compare", net, text, svm, *report]) == 0
            assert main(["explain", net, "--out", str(folder / "explanation"), "--count", "2"]) == 0
            assert main(["explore", shards, "--out", str(folder / "explored")]) == 0
            catalogue = str(folder / "catalogue")
            assert main(["predict", net, "--catalogue", catalogue, "--out", str(folder / "predicted")]) == 0
        finally:
            capture.undo()
        yield Walked(folder, "\n".join(printed))


def test_the_loss_of_val_is_the_softmaxs_cross_entropy(walked: Walked) -> None:
    predictions, _ = read_evaluation(walked.run, "val")
    assert (predictions.labels.sum(axis=1) == 1).all()
    last = rows(walked.run, "val")[-1]
    expected = log_losses(predictions.logits, predictions.labels, "one").mean()
    assert last["loss"] == pytest.approx(expected, rel=1e-5)
    assert last["loss"] > np.log(19) / 2  # binary cross-entropy would be a fraction of it
    assert last["accuracy"] == last["micro_f1"]
    assert last["samples"] == len(predictions.ids)
    assert not {"films", "confusion"} & set(last)


def test_the_run_knows_what_was_declared_without_its_shards(walked: Walked) -> None:
    assert json.loads((walked.run / "model.json").read_text())["schema"]["sample"] == "article"
    assert load_run(walked.run, torch.device("cpu")).declared == ARTICLES
    for run in ("net", "svm"):
        _, metrics = read_evaluation(walked.folder / "runs" / run, "test")
        assert declared_of(metrics) == ARTICLES


def test_no_threshold_is_fitted(walked: Walked) -> None:
    assert list(walked.folder.rglob("thresholds.json")) == []


def test_predictions_are_the_likeliest_topic_with_probabilities_that_add_up(walked: Walked) -> None:
    table = pq.read_table(next((walked.folder / "predicted").glob("part-*.parquet")))
    assert table.column_names == ["id", "labels", "probabilities", "logits", "left_out"]
    predicted = [row for row in table.to_pylist() if row["left_out"] is None]
    names = ARTICLES.labels.classes
    for row in predicted:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["labels"] == [names[int(np.argmax(row["logits"]))]]
    assert len(predicted) > 200


def test_one_article_is_predicted_as_many_are(walked: Walked, capsys: pytest.CaptureFixture[str]) -> None:
    poster = str(next((walked.folder / "films" / "posters").rglob("*.jpg")))
    assert main(["predict", str(walked.run), "--poster", poster, "--overview", "a war"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19
    assert [line.endswith("named") for line in lines] == [True] + [False] * 18  # the likeliest comes first
    assert sum(float(line.split("%")[0]) for line in lines) == pytest.approx(100, abs=0.1)


def test_the_report_answers_by_accuracy_and_shows_what_is_confused(walked: Walked) -> None:
    told = json.loads((walked.folder / "report" / "comparison.json").read_text())
    assert told["headline"]["measure"] == "accuracy"
    assert told["study_2018"] is None
    assert told["schema"]["label"] == "topic"
    net = told["models"][0]
    _, metrics = read_evaluation(walked.run, "test")
    own = net["on_own_films"]
    written = json.loads((walked.run / "metrics-test.json").read_text())
    assert own["accuracy"]["value"] == pytest.approx(written["accuracy"])
    assert own["micro_f1_fitted"] is None
    counts = np.array(written["confusion"])
    assert counts.sum() == metrics["films"]
    names = list(metrics["per_genre"])
    for pair in net["confused"]:
        assert pair["samples"] == counts[names.index(pair["true"]), names.index(pair["predicted"])] > 0
    falling = [pair["samples"] for pair in net["confused"]]
    assert falling == sorted(falling, reverse=True)
    page = (walked.folder / "report" / "index.html").read_text()
    assert 'id="confused"' in page
    assert "2018" not in page.split("</style>")[1].split("<script>")[0]


def test_an_explanation_names_the_topic_that_is_ahead_of_all_others(walked: Walked) -> None:
    told = json.loads((walked.folder / "explanation" / "explanation.json").read_text())
    for article in told["films"]:
        first, second = article["explained"]
        assert first["logit_above_threshold"] > 0 > second["logit_above_threshold"]
    assert set(told["ablation"]["loss_without"]) == {"text", "poster"}
    assert told["ablation"]["intact"]["accuracy"] is not None
    assert len(list((walked.folder / "explanation").glob("article-*.png"))) == 2


@pytest.mark.parametrize("page", ["report", "explanation", "explored"])
def test_pages_speak_of_articles_and_topics(page: str, walked: Walked) -> None:
    html = (walked.folder / page / "index.html").read_text()
    shown = re.sub(r"<style>.*?</style>|<script>.*?</script>|data:image/[^\"]*", " ", html, flags=re.DOTALL)
    hidden = re.compile(r"""(id|class|href|aria-labelledby)="[^"]*\"""")
    text = hidden.sub(" ", shown).replace("genre_dist", "").replace("<code>film", "")
    assert "articles" in text
    assert "topic" in text
    assert WORDS.findall(text) == []


def test_what_is_printed_and_in_markdown_speaks_of_articles_and_topics(walked: Walked) -> None:
    assert "articles with" in walked.printed
    for text in (walked.printed, (walked.folder / "report" / "comparison.md").read_text()):
        assert WORDS.findall(re.sub("genre[-_]dist", "", text)) == []


def test_the_console_shows_accuracy_of_val(walked: Walked) -> None:
    lines = [line for line in walked.printed.splitlines() if line.startswith("val after step")]
    assert len(lines) >= 3
    assert all("  accuracy " in line and "micro F1" not in line for line in lines)


def test_tensorboard_has_topics_and_articles_with_the_likeliest_topic(walked: Walked) -> None:
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

    told = EventAccumulator(str(walked.run / "tensorboard"), size_guidance={TENSORS: 0}).Reload()
    assert [event.step for event in told.Scalars("val_topics/f1/Drama")] == [10, 20]
    assert told.Scalars("val/accuracy")
    shown = [tag for tag in told.Tags()["tensors"] if tag.startswith("val_articles/")]
    assert shown
    predictions, _ = read_evaluation(walked.run, "val")
    for tag in shown:
        number = number_of_id(tag.split("/")[1])
        likeliest = predictions.logits[predictions.ids.tolist().index(number)].argmax()
        text = told.Tensors(tag)[-1].tensor_proto.string_val[0].decode()  # after the last step
        assert f"predicted: {ARTICLES.labels.classes[likeliest]} " in text
    assert WORDS.findall(" ".join(told.Tags()["scalars"] + shown)) == []


def test_a_loss_for_any_number_of_labels_is_refused_before_a_run_is_begun(
    walked: Walked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(walked.folder / "shards", tmp_path / "run", *SHORT, "--loss.kind", "asymmetric")
    for more in ([], ["--dry_run"]):
        assert train([*arguments, *more]) == 2
        assert "exactly one topic: set loss.kind to bce" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_shards_of_any_number_of_topics_are_refused_for_a_model_of_exactly_one(
    walked: Walked, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(walked.run), "--shards", str(sample_shards)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a film has any number of topics, and the model was trained for exactly one topic" in line
