"""Exploring: what a catalogue and its shards both can tell, they tell alike; clusters, words, lengths; the page."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.catalogue.catalogue import SCHEMA, CatalogueWriter, read_rows
from genre_dist.cli import main
from genre_dist.explore.counting import Counts
from genre_dist.explore.findings import cocluster, distinctive, findings, frequent, quantiles
from genre_dist.genres import GENRE_NAMES
from genre_dist.packing.pack import pack
from genre_dist.packing.vocabulary import load_words
from genre_dist.stream.manifest import load_manifest
from genre_dist.tars.films import Film, catalogue_films, shard_films


def film(number: int = 1, **told: Any) -> Film:
    values: dict[str, Any] = {"split": "train", "genres": (0,), "text": "", "words": None, "release_date": ""}
    return Film(**({"id": number, "poster": None} | values | told))


def png(level: int, size: tuple[int, int] = (40, 60)) -> bytes:
    return bytes(cv2.imencode(".png", np.full((size[1], size[0], 3), level, np.uint8))[1])


# --- counting


def test_lengths_are_counted_at_the_study_thresholds() -> None:
    counts = Counts(["Drama"])
    for number, length in enumerate([19, 20, 29, 30, 50, 100, 101]):
        counts.add(film(number, words=["word"] * length))
    counts.add(film(9))
    told = findings(counts)["text_words"]
    assert told["at_least"] == {"20": 6, "30": 4, "50": 3, "100": 2}
    assert (told["films"], told["without_text"], told["longest"]) == (7, 1, 101)


@pytest.mark.parametrize("date", ["", "1999", "1999-00-01", "1999-13-01", "1999-x"])
def test_a_film_without_a_month_is_left_out_of_the_months_and_counted(date: str) -> None:
    counts = Counts(["Drama", "War"])
    counts.add(film(1, release_date=date))
    counts.add(film(2, release_date="1999-02-28", genres=(1,)))
    counts.add(film(3, release_date="2001-02", genres=(0, 1)))
    told = findings(counts)["months"]
    assert told["films"] == [0, 2] + [0] * 10
    assert told["without_month"] == 1
    assert told["share"]["Drama"] == [None, 0.5] + [None] * 10
    assert told["share"]["War"][1] == 1


def test_films_that_cannot_be_read_or_have_no_known_genre_are_counted_and_left_out() -> None:
    counts = Counts(["Drama"])
    for each in (film(1), film(2, genres=()), film(3, fault="a.tar: film 3: cut short")):
        counts.add(each)
    told = findings(counts)
    assert told["films"] == 1
    assert told["left_out"] == {"without a known genre": 1, "unreadable": 1}
    assert counts.faults == ["a.tar: film 3: cut short"]


def test_posters_are_measured_and_a_broken_one_is_named() -> None:
    counts = Counts(["Drama", "Horror"])
    counts.add(film(1, poster=png(200)))
    counts.add(film(2, poster=png(20, (70, 100)), genres=(1,)))
    counts.add(film(3, poster=b"no image"))
    told = findings(counts)["posters"]
    assert told["by_genre"]["Drama"]["brightness"]["0.5"] == 200
    assert told["by_genre"]["Horror"] == {
        "posters": 1,
        "brightness": dict.fromkeys(("0.05", "0.25", "0.5", "0.75", "0.95"), 20),
        "short_side": dict.fromkeys(("0.05", "0.25", "0.5", "0.75", "0.95"), 70),
    }
    assert told["unreadable"] == 1
    assert "film 3" in counts.faults[0]


def test_which_posters_are_looked_at_depends_on_the_film_only() -> None:
    looked = []
    for share in (0.0, 0.3, 1.0):
        counts = Counts(["Drama"], share)
        for number in range(200):
            counts.add(film(number, poster=png(9, (32, 32))))
        looked.append(int(counts.brightness.sum()))
    assert looked[0] == 0
    assert 40 < looked[1] < 80
    assert looked[2] == 200


# --- findings


@settings(deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=50))
def test_quantiles_of_a_histogram_are_those_of_the_values(values: list[int]) -> None:
    found = quantiles(np.bincount(values, minlength=100))
    expected = {f"{q:g}": int(np.quantile(values, q, method="inverted_cdf")) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    assert found == expected


def test_co_clustering_finds_the_groups_and_keeps_absent_genres_apart() -> None:
    together = np.zeros((13, 13), int)
    groups = [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    for group in groups:
        together[np.ix_(group, group)] = 50
    together += np.pad(np.ones((12, 12), int), ((0, 1), (0, 1)))
    clusters = cocluster(together)
    assert sorted(map(sorted, clusters[:-1])) == groups
    assert clusters[-1] == [12]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_every_genre_is_in_one_cluster(genres: int, seed: int) -> None:
    together = np.random.default_rng(seed).integers(0, 3, (genres, genres))
    together = together + together.T
    clusters = cocluster(together)
    assert sorted(place for cluster in clusters for place in cluster) == list(range(genres))
    assert len(clusters) <= 7


def test_words_that_stand_out_are_not_those_that_are_everywhere() -> None:
    western = Counter(sheriff=30, man=50, the=500)
    everywhere = western + Counter(man=5000, house=3000, the=90_000)
    assert next(iter(frequent(western))) == "man"
    assert next(iter(distinctive(western, everywhere))) == "sheriff"
    assert "the" not in frequent(western)
    assert distinctive(everywhere, everywhere) == {}  # the only genre there is


# --- catalogue and shards


@pytest.fixture(scope="module")
def catalogue(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's films, three of them without what exploring needs."""
    folder = tmp_path_factory.mktemp("explore") / "catalogue"
    folder.mkdir()
    (folder / "posters").symlink_to(sample_catalogue / "posters")
    with CatalogueWriter(folder) as writer:
        for number, row in enumerate(read_rows(sample_catalogue, SCHEMA.names)):
            changed = {5: {"release_date": "1987"}, 6: {"release_date": ""}, 7: {"genre_ids": [1]}}
            writer.add(row | changed.get(number, {}))
    return folder


@pytest.fixture(scope="module")
def shards(catalogue: Path) -> Path:
    """All films of the catalogue that have a known genre."""
    folder = catalogue.parent / "shards"
    pack(catalogue, folder, require=(), size=48, shard_size=50, workers=1)
    return folder


def explored(films: Iterable[Film]) -> dict[str, Any]:
    counts = Counts(GENRE_NAMES)
    for each in films:
        counts.add(each)
    return findings(counts)


def test_what_both_can_tell_they_tell_alike(catalogue: Path, shards: Path) -> None:
    packed_words = load_words(shards / "vocabulary.txt")
    written, packed = explored(catalogue_films(catalogue, "overview")), explored(shard_films(load_manifest(shards)))
    for key in ("films", "films_by_split", "genres", "genres_per_film", "text_words", "together", "months"):
        assert written[key] == packed[key], key
    assert written["months"]["without_month"] >= 2
    assert written["left_out"]["without a known genre"] == 1
    for genre, words in packed["words"].items():
        known = {word: n for word, n in written["words"][genre]["frequent"].items() if word in packed_words}
        assert {word: words["frequent"].get(word) for word in known} == known
    for genre, posters in packed["posters"]["by_genre"].items():
        assert posters["posters"] == written["posters"]["by_genre"][genre]["posters"]
        if posters["posters"]:
            before = written["posters"]["by_genre"][genre]
            assert posters["brightness"]["0.5"] == pytest.approx(before["brightness"]["0.5"], abs=3)
            assert before["short_side"]["0.5"] == 60


@pytest.mark.slow
def test_the_page_holds_its_figures_and_asks_nothing_of_any_network(shards: Path, tmp_path: Path) -> None:
    assert main(["explore", str(shards), "--out", str(tmp_path)]) == 0
    page, told = (tmp_path / "index.html").read_text(), json.loads((tmp_path / "explore.json").read_text())
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", page)
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert {"genres", "lengths", "together", "months", "brightness", "words-drama"} <= pictures
    assert "short_side" not in pictures  # packing made them all the same
    assert page.count("data:image/png;base64,") == page.count(" alt=") == len(pictures)
    assert told["data_fingerprint"] == load_manifest(shards).fingerprint
    assert f"{told['films']} films" in page


def test_a_source_that_is_neither_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
