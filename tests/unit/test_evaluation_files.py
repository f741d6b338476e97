"""The files of an evaluation of other data than TMDB's: their own words on disk, read as any."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from one_label import ARTICLES, drawn_topics
from study_runs import drawn_logits, write_evaluation

from genre_dist.genres import GENRE_NAMES
from genre_dist.metrics.evaluation_files import Predictions, declared_of, read_evaluation, read_predictions
from genre_dist.metrics.evaluation_files import write_evaluation as write
from genre_dist.metrics.measures import metrics as measured
from genre_dist.schema import TMDB, Labels
from genre_dist.training.evaluation import print_evaluation

ARTICLE_COUNT = 60
MANY = replace(ARTICLES, labels=Labels(column="topics", classes=GENRE_NAMES))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An evaluated run on articles, whose ids in the index are no order of their keys."""
    for split in ("val", "test"):
        labels = drawn_topics(ARTICLE_COUNT)
        ids, keys = np.arange(ARTICLE_COUNT)[::-1] * 7, [f"article-{number:02d}" for number in range(ARTICLE_COUNT)]
        write_evaluation(tmp_path, split, ids, drawn_logits(labels, 2.0, 0), labels, ARTICLES, keys)
    return tmp_path


def test_on_disk_are_samples_and_labels_with_ids_as_the_data_has_them(run: Path) -> None:
    table = pq.read_table(run / "predictions-test.parquet")
    assert table.column_names == ["id", "number", "logits", "labels"]
    assert table["id"][0].as_py() == "article-00"
    assert json.loads(table.schema.metadata[b"labels"]) == list(GENRE_NAMES)
    written = json.loads((run / "metrics-test.json").read_text())
    assert written["samples"] == ARTICLE_COUNT
    assert written["per_label"]["Drama"]["samples"] == drawn_topics(ARTICLE_COUNT)[:, GENRE_NAMES.index("Drama")].sum()
    assert (written["schema"]["sample"], written["schema"]["labels"]["choose"]) == ("article", "one")
    assert not {"films", "per_genre", "threshold", "fitted"} & set(written)


def test_they_are_read_with_what_was_declared_and_keys_that_follow_their_rows(run: Path) -> None:
    predictions, metrics = read_evaluation(run, "test")
    assert declared_of(metrics) == ARTICLES
    assert metrics["films"] == ARTICLE_COUNT
    assert predictions.ids.tolist() == sorted(predictions.ids.tolist())
    assert predictions.keys is not None
    assert predictions.keys[0] == f"article-{ARTICLE_COUNT - 1}"
    np.testing.assert_array_equal(predictions.labels[0], drawn_topics(ARTICLE_COUNT)[-1])


def test_with_exactly_one_label_nothing_is_fitted(run: Path) -> None:
    assert not (run / "thresholds.json").exists()


def test_with_any_number_of_labels_the_fitted_figures_have_the_same_words(tmp_path: Path) -> None:
    labels = drawn_topics(ARTICLE_COUNT)
    write_evaluation(tmp_path, "val", np.arange(ARTICLE_COUNT), drawn_logits(labels, 2.0, 0), labels, MANY)
    written = json.loads((tmp_path / "metrics-val.json").read_text())
    assert written["fitted"]["fitted_on_these_samples"] is True
    assert "samples" in written["fitted"]["per_label"]["Drama"]
    fitted = json.loads((tmp_path / "thresholds.json").read_text())
    assert fitted["samples"] == ARTICLE_COUNT
    assert fitted["rule"].startswith("a topic is named")
    predictions, metrics = read_evaluation(tmp_path, "val")
    assert predictions.keys == [str(number) for number in range(ARTICLE_COUNT)]
    assert metrics["fitted"]["micro_f1"] == written["fitted"]["micro_f1"]


def test_a_label_may_be_called_as_one_of_our_keys(tmp_path: Path) -> None:
    labels = drawn_topics(ARTICLE_COUNT)
    names = ["films", "per_genre", *GENRE_NAMES[2:]]
    logits = drawn_logits(labels, 2.0, 0)
    predictions = Predictions(np.arange(ARTICLE_COUNT), logits, labels)
    write(tmp_path, "test", predictions, measured(logits, labels, names, "one"), ARTICLES)
    assert list(read_evaluation(tmp_path, "test")[1]["per_genre"]) == names


def test_films_of_tmdb_keep_their_columns_and_keys(tmp_path: Path) -> None:
    labels = drawn_topics(ARTICLE_COUNT)
    write_evaluation(tmp_path, "test", np.arange(ARTICLE_COUNT), drawn_logits(labels, 2.0, 0), labels)
    assert pq.read_table(tmp_path / "predictions-test.parquet").column_names == ["tmdb_id", "logits", "labels"]
    written = json.loads((tmp_path / "metrics-test.json").read_text())
    assert {"films", "per_genre", "threshold"} <= set(written)
    assert "schema" not in written
    assert declared_of(read_evaluation(tmp_path, "test")[1]) == TMDB


def test_what_is_wrong_is_told_in_the_words_of_the_data(run: Path) -> None:
    with pytest.raises(ValueError, match=r"no predictions of 2 topics \(they are for other topics\)"):
        read_predictions(run / "predictions-test.parquet", ["Drama", "War"], ARTICLES)


def test_the_tables_show_accuracy_topics_and_what_is_confused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    figures = {"split": "test", "loss": 0.3, "left_out": 0, **read_figures(run)}
    print_evaluation(figures, ARTICLES)
    told = capsys.readouterr().out
    assert f"test: {ARTICLE_COUNT} articles" in told
    assert "top_5" in told
    assert "topic" in told
    assert "most often confused" in told  # 19 topics are too many for a matrix
    assert not {"film", "genre", "threshold"} & set(told.lower().replace("s ", " ").split())


def test_of_few_labels_the_whole_confusion_matrix_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    logits = np.array([[2, 1, 0], [2, 1, 0], [0, 1, 2]], np.float32)
    figures = measured(logits, np.eye(3, dtype=bool)[[0, 1, 2]], ["a", "b", "c"], "one")
    print_evaluation({"split": "test", "loss": 0.3, "left_out": 0, **figures}, ARTICLES)
    told = capsys.readouterr().out
    assert "articles: true topic, by predicted" in told
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in told.splitlines() if "\u2502" in line]
    assert rows[-3:] == [["a", "1", "0", "0"], ["b", "1", "0", "0"], ["c", "0", "0", "1"]]


def read_figures(run: Path) -> dict[str, object]:
    """The figures of a run in memory, made again of its predictions."""
    predictions, _ = read_evaluation(run, "test")
    return measured(predictions.logits, predictions.labels, GENRE_NAMES, "one")
