"""Baselines: features and models are scikit-learn's; runs keep the files of a neural run."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import MultinomialNB
from sklearn.svm import LinearSVC

from genre_dist.baselines import BASELINES, features
from genre_dist.baselines import linear as models
from genre_dist.baselines.texts import LabelledText, Texts
from genre_dist.catalogue.sample_films import make_sample
from genre_dist.cli import main
from genre_dist.lock import FILE as LOCK
from genre_dist.packing.pack import pack
from genre_dist.stream.manifest import load_manifest
from genre_dist.tars.films import catalogue_films

WORDS = 40


def text(tokens: list[int]) -> LabelledText:
    return LabelledText(0, (), np.array(tokens, np.int32), "", None)


texts_of_tokens = st.lists(st.lists(st.integers(0, WORDS - 1), max_size=12), min_size=1, max_size=12)


def counts(texts: list[list[int]]) -> sp.csr_matrix:
    return features.word_counts([text(tokens) for tokens in texts], WORDS)


@settings(deadline=None, max_examples=50)
@given(texts_of_tokens)
def test_bags_of_words_are_those_of_scikit_learn_without_padding_and_unknown_words(texts: list[list[int]]) -> None:
    vectorizer = CountVectorizer(vocabulary=[str(word) for word in range(WORDS)], token_pattern=r"\S+")
    expected = vectorizer.transform([" ".join(map(str, tokens)) for tokens in texts]).toarray()
    expected[:, :2] = 0
    np.testing.assert_array_equal(counts(texts).toarray(), expected)


@settings(deadline=None, max_examples=50)
@given(texts_of_tokens, st.floats(0, 0.5), st.floats(0.5, 1))
def test_columns_and_weights_are_those_of_scikit_learn(texts: list[list[int]], least: float, most: float) -> None:
    matrix = counts(texts)
    with_word = (matrix.toarray() > 0).sum(axis=0)
    columns = features.choose_columns(matrix, min_share=least, max_share=most, idf=True)
    wanted = np.flatnonzero((with_word >= max(1, least * len(texts))) & (with_word <= most * len(texts)))
    np.testing.assert_array_equal(columns.kept, wanted)
    if len(wanted):
        expected = TfidfTransformer().fit_transform(matrix[:, wanted]).toarray()
        np.testing.assert_allclose(columns(matrix).toarray(), expected, atol=1e-6)


def test_blocks_of_columns_are_scaled_by_themselves() -> None:
    matrix = sp.csr_matrix(np.array([[3.0, 4.0, 0.0, 2.0], [0.0, 0.0, 5.0, 0.0]], np.float32))
    columns = features.Columns(np.arange(4), np.ones(4, np.float32), False, (2, 4))
    np.testing.assert_allclose(columns(matrix).toarray(), [[0.6, 0.8, 0, 1], [0, 0, 1, 0]])


def test_mean_vectors_leave_out_stop_words_and_a_text_of_nothing_else_is_zero() -> None:
    words = ["<pad>", "<unk>", "the", "haunted", "house"]
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    ignored = features.stop_words(words)
    assert ignored.tolist() == [True, True, True, False, False]
    means = features.mean_vectors([text([2, 3, 4, 1]), text([2, 2])], vectors, ignored)
    np.testing.assert_array_equal(means, [[7, 8], [0, 0]])


# --- models


def separable(films: int, seed: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts of 30 words in which each of four genres has words of its own."""
    random = np.random.default_rng(seed)
    labels = random.random((films, 4)) < 0.3
    rates = 0.2 + 1.5 * np.repeat(labels, 5, axis=1)
    counted = np.concatenate([random.poisson(rates), random.poisson(0.5, (films, 10))], axis=1)
    return sp.csr_matrix(counted.astype(np.float32)), labels


def test_naive_bayes_is_that_of_scikit_learn() -> None:
    matrix, labels = separable(60, 0)
    linear, _ = models.fit("naive_bayes", matrix, labels, workers=2)
    probabilities = OneVsRestClassifier(MultinomialNB()).fit(matrix, labels).predict_proba(matrix)
    np.testing.assert_allclose(1 / (1 + np.exp(-linear.logits(matrix))), probabilities, atol=1e-4)


def test_the_support_vector_machine_is_that_of_scikit_learn() -> None:
    matrix, labels = separable(200, 0)
    linear, unconverged = models.fit("svm", matrix, labels, workers=2)
    expected = OneVsRestClassifier(LinearSVC(random_state=0)).fit(matrix, labels).decision_function(matrix)
    np.testing.assert_allclose(linear.logits(matrix), expected, atol=1e-4)
    assert unconverged == 0


def test_as_many_genres_are_fitted_at_the_same_time_as_the_memory_holds() -> None:
    entries = 1000  # 12 bytes of each are held, 16 for each genre at work
    assert models.workers_within(12_000 + 3 * 16_000, entries, workers=8) == 3
    assert models.workers_within(1e9, entries, workers=8) == 8
    assert models.workers_within(27_999, entries, workers=8) == 0


@pytest.mark.parametrize("model", ["naive_bayes", "svm"])
def test_a_genre_that_all_or_no_films_have_keeps_its_log_odds(model: str) -> None:
    matrix, labels = separable(50, 2)
    labels[:, 0], labels[:, 1] = False, True
    logits = models.fit(model, matrix, labels, workers=1)[0].logits(matrix)
    np.testing.assert_allclose(logits[:, 0], np.log(1 / 51), rtol=1e-5)
    np.testing.assert_allclose(logits[:, 1], np.log(51), rtol=1e-5)
    assert np.isfinite(logits).all()


# --- from shards to runs


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines") / "catalogue"
    make_sample(400, seed=5, out=folder, size=(32, 48))
    return folder


@pytest.fixture(scope="module")
def shards(catalogue: Path) -> Path:
    """Films with an overview, and word vectors in which every known word has one of four directions."""
    vectors = catalogue.parent / "vectors.txt"
    words = sorted({word for film in catalogue_films(catalogue, "overview") for word in film.words or ()})
    lines = [f"{word} {' '.join(str(float(len(word) % 4 == place)) for place in range(4))}" for word in words]
    vectors.write_text("\n".join(lines) + "\n")
    folder = catalogue.parent / "shards"
    pack(catalogue, folder, require=("overview",), vectors=vectors, size=24, shard_size=100, workers=1)
    return folder


@pytest.fixture(scope="module")
def runs(shards: Path) -> Path:
    """All baselines, as the command makes them by default."""
    folder = shards.parent / "runs"
    assert main(["baseline", str(shards), "--out", str(folder), "--workers", "1"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_leaves_the_files_of_a_neural_run(kind: str, runs: Path, shards: Path) -> None:
    manifest = load_manifest(shards)
    for split in ("val", "test"):
        table = pq.read_table(runs / kind / f"predictions-{split}.parquet")
        assert table["tmdb_id"].to_pylist() == Texts(manifest).ids(split).tolist()
        labels = np.array(table["labels"].to_pylist())
        assert labels.sum(axis=0).tolist() == manifest.genre_counts[split]
        told = json.loads((runs / kind / f"metrics-{split}.json").read_text())
        assert told["films"] == len(table)
        assert told["fitted"]["micro_f1"] >= 0
    told = json.loads((runs / kind / "baseline.json").read_text())
    assert (told["kind"], told["data_fingerprint"]) == (kind, manifest.fingerprint)


def test_the_baselines_learn(runs: Path) -> None:
    auc = {kind: json.loads((runs / kind / "metrics-test.json").read_text())["auc"] for kind in BASELINES}
    assert min(auc[kind] for kind in BASELINES if kind != "svm_vectors") > 0.65, auc


def test_what_is_finished_is_left_alone_and_what_is_not_is_made_again(
    runs: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "nb_bow" / "baseline.json").unlink()  # killed before its end
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    assert main(["baseline", str(shards), "--out", str(runs), "--workers", "1"]) == 0
    assert f"{runs / 'svm_bow'} is finished" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    changed = {path.parent.name for path in after if after[path] != before.get(path) and path.name != LOCK}
    assert changed == {"nb_bow"}


def test_one_kind_goes_into_the_run_itself_and_from_the_catalogue_the_texts_are_as_written(
    catalogue: Path, shards: Path, runs: Path, tmp_path: Path
) -> None:
    command = ["baseline", str(shards), "--out", str(tmp_path), "--kind", "nb_bow", "--catalogue", str(catalogue)]
    assert main(command) == 0
    packed, written = (pq.read_table(folder / "predictions-test.parquet") for folder in (runs / "nb_bow", tmp_path))
    assert packed["tmdb_id"] == written["tmdb_id"]
    np.testing.assert_allclose(packed["logits"].to_pylist(), written["logits"].to_pylist(), atol=1e-4)
    assert "as written" in json.loads((tmp_path / "baseline.json").read_text())["text"]


def test_features_that_do_not_fit_into_the_memory_allowed_are_told_and_fitted_one_genre_at_a_time(
    runs: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["baseline", str(shards), "--out", str(tmp_path), "--kind", "svm_tfidf"]
    assert main([*command, "--memory", "0.00001"]) == 0
    assert "more than --memory 1e-05" in capsys.readouterr().err
    auc = [json.loads((run / "metrics-test.json").read_text())["auc"] for run in (runs / "svm_tfidf", tmp_path)]
    assert auc[0] == auc[1]


def test_a_damaged_film_is_left_out_of_training_and_predicted_from_no_words(
    shards_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = load_manifest(shards_copy)
    for split in ("train", "test"):
        path = shards_copy / manifest.shards_of(split)[0].file
        with open(path, "r+b") as file:
            file.write(b"x" * 512)  # the first film's first header
    assert main(["baseline", str(shards_copy), "--out", str(tmp_path), "--kind", "nb_bow"]) == 0
    assert "predicted from no words" in capsys.readouterr().err
    told = json.loads((tmp_path / "metrics-test.json").read_text())
    assert (told["bad_samples"], told["films"]) == (1, manifest.samples("test"))
    assert json.loads((tmp_path / "baseline.json").read_text())["train_films_left_out"] == 1


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--kind", "svm_bowl"], "svm_bow"),
        (["--kind", "svm_vectors"], "--vectors"),
        (["--catalogue", "OTHER", "--kind", "nb_bow"], "not the catalogue"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    more: list[str],
    named: str,
    sample_shards: Path,
    catalogue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    make_sample(3, seed=9, out=other, size=(32, 48))
    more = [str(other) if option == "OTHER" else option for option in more]
    capsys.readouterr()
    assert main(["baseline", str(sample_shards), "--out", str(tmp_path / "run"), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not list((tmp_path / "run").glob("*.json"))


def test_a_folder_of_something_else_is_not_overwritten(
    runs: Path, shards: Path, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["baseline", str(sample_shards), "--out", str(runs), "--kind", "nb_bow,svm_bow"]) == 2
    assert "data_fingerprint" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("run: {}\n")
    assert main(["baseline", str(shards), "--out", str(tmp_path), "--kind", "nb_bow"]) == 2
    assert "training run" in capsys.readouterr().err
