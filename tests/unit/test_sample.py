"""The sample: the same films for the same seed, and a signal that both media share out between them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.multiclass import OneVsRestClassifier

from genre_dist.catalogue.catalogue import movies_file, poster_file, read_rows
from genre_dist.catalogue.sample_films import FOREIGN, PROFILES, make_sample
from genre_dist.genres import GENRE_NAMES, INDEX_OF_ID

FILMS = 900


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    make_sample(FILMS, seed=1, out=out, size=(76, 114))
    return out


@pytest.fixture(scope="module")
def films(sample: Path) -> list[dict[str, Any]]:
    return list(read_rows(sample))


def picture(out: Path, row: dict[str, Any]) -> np.ndarray:
    """The film's poster, uint8 [height, width, 3] in BGR."""
    return np.asarray(cv2.imread(str(poster_file(out, row["tmdb_id"]))))


def contents(out: Path, ids: range) -> list[Any]:
    posters = [poster_file(out, tmdb_id) for tmdb_id in ids]
    rows = [row for row in read_rows(out) if row["tmdb_id"] in ids]
    return [rows, [path.read_bytes() if path.exists() else None for path in posters]]


def test_a_film_depends_on_the_seed_and_its_id_alone(tmp_path: Path) -> None:
    make_sample(40, seed=3, out=tmp_path / "a")
    make_sample(40, seed=3, out=tmp_path / "b")
    make_sample(12, seed=3, out=tmp_path / "few")
    make_sample(12, seed=4, out=tmp_path / "other")
    assert contents(tmp_path / "a", range(1, 41)) == contents(tmp_path / "b", range(1, 41))
    assert contents(tmp_path / "a", range(1, 13)) == contents(tmp_path / "few", range(1, 13))
    assert contents(tmp_path / "few", range(1, 13)) != contents(tmp_path / "other", range(1, 13))


def test_ids_count_from_one_and_posters_are_jpegs_of_the_size(sample: Path, films: list[dict[str, Any]]) -> None:
    assert [row["tmdb_id"] for row in films] == list(range(1, FILMS + 1))
    for row in films[:50]:
        path = poster_file(sample, row["tmdb_id"])
        assert path.exists() == (row["poster_status"] == "ok")
        if path.exists():
            assert path.read_bytes()[:2] == b"\xff\xd8"
            assert row["poster_bytes"] == path.stat().st_size
            assert picture(sample, row).shape == (114, 76, 3)


def test_genres_are_as_common_as_in_real_catalogues(films: list[dict[str, Any]]) -> None:
    assert set(PROFILES) == set(GENRE_NAMES)
    labels = np.array([INDEX_OF_ID[genre] for row in films for genre in row["genre_ids"]])
    share = np.bincount(labels, minlength=19) / FILMS
    assert GENRE_NAMES[int(share.argmax())] == "Drama"
    assert share[GENRE_NAMES.index("Western")] < 0.05
    assert (share > 0).all()
    counts = [len(set(row["genre_ids"])) for row in films]
    assert (min(counts), max(counts)) == (1, 3)
    assert counts == [len(row["genre_ids"]) for row in films]


def test_overviews_have_the_length_of_overviews(films: list[dict[str, Any]]) -> None:
    words = [len(row["overview"].split()) for row in films if row["overview"] and row["original_language"] == "en"]
    assert min(words) >= 15
    assert max(words) <= 70
    assert 25 <= np.median(words) <= 50


def test_a_few_films_are_odd(films: list[dict[str, Any]]) -> None:
    texts = {text for _, text in FOREIGN}
    odd = {
        "other alphabet": [row for row in films if row["overview"] in texts],
        "no overview": [row for row in films if not row["overview"]],
        "no poster": [row for row in films if row["poster_status"] == "none"],
        "only a year": [row for row in films if len(row["release_date"]) == 4],
    }
    assert all(1 <= len(rows) <= 0.03 * FILMS for rows in odd.values()), {kind: len(rows) for kind, rows in odd.items()}


def mean_auc(features: np.ndarray, labels: np.ndarray, trained: int) -> float:
    """Logistic regression on the first `trained` rows; mean area under the ROC curve over genres, on the others."""
    model = OneVsRestClassifier(LogisticRegression(C=0.3, max_iter=200)).fit(features[:trained], labels[:trained])
    return float(roc_auc_score(labels[trained:], model.predict_proba(features[trained:]), average="macro"))


def test_both_media_tell_more_than_either_and_neither_tells_all(sample: Path, films: list[dict[str, Any]]) -> None:
    films = [row for row in films if row["poster_status"] == "ok" and row["overview"]]
    labels = np.zeros((len(films), 19), dtype=int)
    for index, row in enumerate(films):
        labels[index, [INDEX_OF_ID[genre] for genre in row["genre_ids"]]] = 1
    common = labels.sum(axis=0) >= 40  # enough of them on both sides
    words = CountVectorizer(binary=True, min_df=3).fit_transform([row["overview"] for row in films]).toarray()
    hues = np.stack([np.sqrt(hue_histogram(picture(sample, row))) for row in films])
    scores = {
        name: mean_auc(features.astype(float), labels[:, common], trained=600)
        for name, features in {"text": words, "poster": 4 * hues, "both": np.hstack([words, 4 * hues])}.items()
    }
    assert min(scores["text"], scores["poster"]) > 0.65, scores
    assert scores["both"] > max(scores["text"], scores["poster"]) + 0.02, scores
    assert scores["both"] < 0.99, scores


def hue_histogram(image: np.ndarray) -> np.ndarray:
    """Share of the saturated pixels in each of 38 hues: float [38]."""
    hsv = cv2.cvtColor(cv2.medianBlur(image, 5), cv2.COLOR_BGR2HSV)
    hues = hsv[..., 0][hsv[..., 1] > 100]
    return np.bincount(hues.astype(int) * 38 // 180, minlength=38) / image[..., 0].size


def test_an_existing_catalogue_is_kept(tmp_path: Path) -> None:
    make_sample(2, seed=1, out=tmp_path)
    before = movies_file(tmp_path).read_bytes()
    with pytest.raises(ValueError, match="already holds a catalogue; delete it or give another --out"):
        make_sample(3, seed=1, out=tmp_path)
    assert movies_file(tmp_path).read_bytes() == before


@pytest.mark.parametrize(("films", "seed", "size"), [(0, 1, (228, 342)), (3, -1, (228, 342)), (3, 1, (20, 342))])
def test_senseless_numbers_are_refused(tmp_path: Path, films: int, seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="give at least 1 film, a seed from 0 and at least 32 pixels"):
        make_sample(films, seed, tmp_path, size)
