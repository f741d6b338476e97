"""What a run leaves for comparing, damaged or by another hand: the right figures, or one line that names the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import ANY_JSON, NASTY, damaged, odd_json, told_or_read
from hypothesis import given
from hypothesis import strategies as st
from one_label import ARTICLES, drawn_topics
from study_runs import drawn_labels, drawn_logits, write_evaluation, write_record

from genre_dist.baselines import read_description
from genre_dist.compare.costs import read_record
from genre_dist.genres import GENRE_NAMES
from genre_dist.metrics.derived import read_derived
from genre_dist.metrics.evaluation_files import (
    Predictions,
    declared_of,
    read_evaluation,
    read_metrics,
    read_predictions,
)
from genre_dist.study.study_file import Study, load_study

SMALL = Path(__file__).parents[2] / "configs" / "study_small.yaml"
FILMS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    labels = drawn_labels(FILMS)
    write_evaluation(folder, "test", np.arange(FILMS), drawn_logits(labels, 2.0, 0), labels)
    write_record(folder, steps=20)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the damaged files go, one over the other."""
    return tmp_path_factory.mktemp("damaged")


@given(data=st.data())
def test_damaged_predictions_are_told_or_read_as_they_were(data: st.DataObject, run: Path, place: Path) -> None:
    whole = run / "predictions-test.parquet"
    path = place / whole.name
    path.write_bytes(data.draw(damaged(whole.read_bytes())))
    found = told_or_read(lambda: read_predictions(path, GENRE_NAMES), path)
    if found is not None:
        for read, right in zip(found, read_predictions(whole, GENRE_NAMES), strict=True):
            np.testing.assert_array_equal(read, right)


VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.int32(): st.integers(0, 2**31 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=5),
}


@st.composite
def columns(draw: st.DrawFn, films: int) -> pa.Array:
    """A column of any kind: numbers, texts, or lists of them of about the right lengths."""
    kind = draw(st.sampled_from(list(VALUES)))
    value = VALUES[kind] | st.none() if draw(st.booleans()) else VALUES[kind]
    if draw(st.booleans()):
        return pa.array(draw(st.lists(value, min_size=films, max_size=films)), kind)
    widths = st.sampled_from([0, 1, 2, 2, 2, 2, 3])
    lists = widths.flatmap(lambda width: st.lists(value, min_size=width, max_size=width))
    return pa.array(draw(st.lists(lists, min_size=films, max_size=films)), pa.list_(kind))


@given(data=st.data())
def test_predictions_of_any_columns_are_told_or_read(data: st.DataObject, place: Path) -> None:
    films = data.draw(st.integers(0, 3))
    identity = {"tmdb_id": pa.array(range(films), pa.int64())}
    if data.draw(st.booleans()):  # of other data
        keys = pa.array([f"article-{number}" for number in range(films)], pa.string())
        identity = {"number": identity["tmdb_id"], "id": keys}
    right = identity | {
        "logits": pa.array([[0.5, -1.5]] * films, pa.list_(pa.float32())),
        "labels": pa.array([[True, False]] * films, pa.list_(pa.bool_())),
    }
    for name in data.draw(st.sets(st.sampled_from(list(right)), max_size=2)):
        right[name] = data.draw(columns(films))
    path = place / "predictions-val.parquet"
    pq.write_table(pa.table(right), path)
    found = told_or_read(lambda: read_predictions(path, ["Drama", "War"]), path)
    assert found is None or is_sound(found, films)


def is_sound(found: Predictions, films: int) -> bool:
    ids, logits, labels, keys = found
    return (
        films > 0
        and (keys is None or [type(key) for key in keys] == [str] * films)
        and logits.shape == labels.shape == (films, 2)
        and (logits.dtype, labels.dtype) == (np.float32, bool)
        and bool(np.isfinite(logits).all())
        and len(set(ids.tolist())) == films
    )


@given(data=st.data())
def test_odd_metrics_of_other_data_are_told_or_read(data: st.DataObject, place: Path) -> None:
    topics = drawn_topics(FILMS)
    write_evaluation(place, "test", np.arange(FILMS), drawn_logits(topics, 2.0, 0), topics, ARTICLES)
    path = place / "metrics-test.json"
    path.write_bytes(data.draw(odd_json(json.loads(path.read_text()))))
    found = told_or_read(lambda: read_metrics(path), path)
    assert found is None or declared_of(found).labels.choose in ("one", "many")


@given(data=st.data())
def test_odd_metrics_are_told_or_read_as_they_were(data: st.DataObject, run: Path, place: Path) -> None:
    whole = run / "metrics-test.json"
    path = place / whole.name
    path.write_bytes(data.draw(odd_json(json.loads(whole.read_text())) | damaged(whole.read_bytes())))
    found = told_or_read(lambda: read_metrics(path), path)
    assert found is None or found == read_metrics(whole) or b'"sha256"' not in path.read_bytes()


@given(data=st.data())
def test_odd_metrics_without_a_checksum_have_figures_that_can_be(data: st.DataObject, run: Path, place: Path) -> None:
    plain = json.loads((run / "metrics-test.json").read_text())
    del plain["sha256"]
    path = place / "metrics-val.json"
    path.write_bytes(data.draw(odd_json(plain)))
    found = told_or_read(lambda: read_metrics(path), path)
    if found is not None:
        assert 0 <= found["micro_f1"] <= 1
        assert all(0 <= row["f1"] <= 1 and row["films"] >= 0 for row in found["per_genre"].values())


@given(data=st.data())
def test_an_odd_record_is_told_or_read(data: st.DataObject, run: Path, place: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(odd_json(json.loads(lines[at])) | damaged(lines[at]))
    (place / "metrics.jsonl").write_bytes(b"".join(lines))
    found = told_or_read(lambda: read_record(place), place / "metrics.jsonl")
    if found is not None and found[0] is not None:
        assert found[0].hours >= 0
        assert found[0].steps is None or found[0].steps > 0


@given(data=st.data())
def test_an_odd_description_of_a_baseline_is_told_or_read(data: st.DataObject, place: Path) -> None:
    path = place / "baseline.json"
    path.write_bytes(data.draw(odd_json({"kind": "svm_bow", "title": "SVM", "fit_seconds": 1.5, "train_films": 3})))
    found = told_or_read(lambda: read_description(path), path)
    assert found is None or found.get("fit_seconds", 0) >= 0


@given(data=st.data())
def test_an_odd_description_of_a_derived_evaluation_is_refused_or_read(data: st.DataObject, place: Path) -> None:
    path = place / "derived.json"
    content = {"kind": "late fusion", "title": "Late fusion of a and b", "of": ["a", "b"], "hidden": []}
    content |= {"weights": {"a and b": {"a": 0.5, "b": 0}}, "data_fingerprint": None}
    path.write_bytes(data.draw(odd_json(content | {"made_from": [{"predictions-val.parquet": "0" * 64}, {}]})))
    found = told_or_read(lambda: read_derived(place), path)
    path.unlink()
    if found is not None:
        assert found["kind"] in ("hidden", "late fusion", "ensemble")
        assert all(weight >= 0 for own in (found["weights"] or {}).values() for weight in own.values())


@given(data=st.data())
def test_an_odd_study_is_told_or_read(data: st.DataObject, place: Path) -> None:
    path = place / "study.yaml"
    path.write_bytes(data.draw(damaged(SMALL.read_bytes()) | st.builds(with_section, st.data(), NASTY | ANY_JSON)))
    found = told_or_read(lambda: load_study(path), path)
    assert found is None or (isinstance(found, Study) and len(found.stages) > 0)


def with_section(data: st.DataObject, value: Any) -> bytes:
    """The study with another value under one of its keys."""
    keys = st.sampled_from(
        ["data", "stages", "seeds", "lanes", "processes", "baselines", "split", "group", "overrides", "hidden", "fused"]
    )
    return SMALL.read_bytes() + f"\n{data.draw(keys)}: {json.dumps(value)}\n".encode("utf-8", "surrogatepass")


def test_metrics_and_predictions_of_two_evaluations_are_told(run: Path, tmp_path: Path) -> None:
    labels = drawn_labels(FILMS)
    for folder, skill in ((tmp_path / "one", 1.0), (tmp_path / "other", 3.0)):
        write_evaluation(folder, "test", np.arange(FILMS), drawn_logits(labels, skill, 0), labels)
    (tmp_path / "one" / "predictions-test.parquet").replace(tmp_path / "other" / "predictions-test.parquet")
    with pytest.raises(ValueError, match="not of the same evaluation"):
        read_evaluation(tmp_path / "other", "test")
