"""What compare finds in evaluated runs, whatever left them: seeds, film sets, costs, words, and the files it writes."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from one_label import ARTICLES, drawn_topics
from study_runs import (
    FROZEN,
    TEXT,
    WARM,
    drawn_labels,
    drawn_logits,
    labels_of,
    write_evaluation,
    write_record,
    write_run,
)

from genre_dist import cli
from genre_dist.compare.comparison import compare, compared
from genre_dist.compare.costs import POINTS, read_record
from genre_dist.compare.differences import read_film_info
from genre_dist.compare.results import read_models, read_result
from genre_dist.compare.verdict import p_value
from genre_dist.genres import GENRE_NAMES
from genre_dist.metrics.bootstrap import MEASURES
from genre_dist.metrics.calibration import calibration
from genre_dist.metrics.measures import metrics
from genre_dist.schema import Choose
from genre_dist.stream.manifest import load_manifest
from genre_dist.tars.films import shard_films

pytestmark = pytest.mark.slow

QUICK = 200


def write_plain(run: Path, skill: float, seed: int, films: int = 150, first: int = 0, label_seed: int = 0) -> Path:
    """A folder with predictions and metrics alone, on the films `first` to `films` of an invented split."""
    for split, shift in (("val", 1), ("test", 0)):
        labels = drawn_labels(films, label_seed + shift)
        logits = drawn_logits(labels, skill, seed)
        write_evaluation(run, split, np.arange(first, films) + 1000, logits[first:], labels[first:])
    return run


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, sample_shards: Path) -> dict[str, Any]:
    """Two experiments of two seeds on every second film, a text model and a baseline on all, compared."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        write_run(folder / f"{name}-seed{seed}", sample_shards, skill, 10 * skill + seed, options, every=2)
        for name, skill, options in (("frozen", 1, FROZEN), ("warm", 3, WARM))
        for seed in range(2)
    ]
    runs.append(write_run(folder / "text", sample_shards, 2, 30, TEXT))
    baseline = write_run(folder / "svm", sample_shards, 1, 40)
    (baseline / "config.yaml").unlink()
    (baseline / "metrics.jsonl").unlink()
    (baseline / "baseline.json").write_text(json.dumps({"title": "SVM, words", "fit_seconds": 3.0}))
    return compare([*runs, baseline], folder / "report", resamples=QUICK) | {"folder": folder}


def row(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [model for model in comparison["models"] if model["name"] == name]
    return found


# --- who is compared with whom, on which films


def test_folders_that_differ_in_their_seed_are_one_model(comparison: dict[str, Any]) -> None:
    assert [model["name"] for model in comparison["models"]] == ["frozen", "warm", "text", "svm"]
    figures = row(comparison, "warm")["on_own_films"]["micro_f1"]
    runs = [read_result(comparison["folder"] / f"warm-seed{seed}", "test").metrics["micro_f1"] for seed in range(2)]
    assert figures["seeds"] == pytest.approx(runs)
    assert figures["value"] == pytest.approx(np.mean(runs))
    assert figures["sd"] == pytest.approx(np.std(runs, ddof=1))
    assert row(comparison, "text")["on_own_films"]["micro_f1"]["sd"] is None


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["seed0", "seed1"], ["exp"]),  # from within the experiment's folder
        (["../exp/seed0", "./seed1/"], ["exp"]),
        (["a-seed0", "a-seed1", "a_seed-2"], ["a"]),
        (["linseed2", "linseed3"], ["linseed2", "linseed3"]),
        (["a.seed0", "b/seed0", "b/seed1"], ["a", "b"]),
        (["a-seed0", "b/a-seed0"], ["exp/a", "b/a"]),
        (["a-seed0", "link-seed1"], ["a"]),  # a link to a run that is there already is no other seed
    ],
)
def test_paths_of_runs_are_grouped_by_seed_wherever_they_are_named_from(
    folders: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exp").mkdir()
    monkeypatch.chdir(tmp_path / "exp")
    for seed, folder in enumerate(folders):
        if folder.startswith("link"):
            Path(folder).symlink_to(folders[0])
        else:
            write_plain(Path(folder), 1.0, seed)
    models = read_models([Path(folder) for folder in folders], "test")
    assert [model.name for model in models] == names
    assert sum(len(model.results) for model in models) == sum(not folder.startswith("link") for folder in folders)


def test_seeds_that_were_not_trained_alike_are_told(tmp_path: Path, sample_shards: Path) -> None:
    def notes(name: str, *options: tuple[str, ...]) -> list[str]:
        runs = [tmp_path / f"{name}-seed{seed}" for seed in range(len(options))]
        for seed, (run, more) in enumerate(zip(runs, options, strict=True)):
            write_run(run, sample_shards, 1, seed, ("--run.seed", str(seed), *more))
        comparison = compared(read_models(runs, "test"), resamples=QUICK)
        return [note for note in comparison["notes"] if note.startswith("NOT ALL RUNS THAT COUNT AS SEEDS")]

    start = "--model.text.weights"
    assert (
        notes("alike", (start, "out/text-seed0/model.safetensors"), (start, "out/text-seed1/model.safetensors")) == []
    )
    (note,) = notes("unlike", (), ("--data.image_size", "160"))
    assert "OF unlike WERE TRAINED ALIKE (data.image_size is 224 and 160)" in note


def test_every_pair_has_an_interval_for_every_measure(comparison: dict[str, Any]) -> None:
    pairs = {(pair["one"], pair["other"]) for pair in comparison["differences"]}
    assert pairs == {("warm", "frozen"), ("text", "frozen"), ("svm", "frozen")} | {
        ("text", "warm"),
        ("svm", "warm"),
        ("svm", "text"),
    }
    for pair in comparison["differences"]:
        assert set(pair["measures"]) == set(MEASURES)
        for found in pair["measures"].values():
            assert found["low"] <= found["value"] <= found["high"]
            assert 0 < found["p"] <= found["p_holm"] <= 1


def test_pairs_are_compared_on_the_films_they_share_and_the_counts_are_told_loudly(comparison: dict[str, Any]) -> None:
    films = {(pair["one"], pair["other"]): pair["films"] for pair in comparison["differences"]}
    few, all_films = row(comparison, "warm")["films"], row(comparison, "text")["films"]
    assert few == -(-all_films // 2)
    assert films["svm", "text"] == all_films
    assert {films[pair] for pair in films if pair != ("svm", "text")} == {few}
    assert comparison["shared_films"] == few
    assert comparison["notes"][0].startswith("NOT ALL MODELS WERE EVALUATED ON THE SAME FILMS")
    assert f"text {all_films}" in comparison["notes"][0]


def test_of_each_pair_is_told_how_many_films_either_has_beyond_those_of_both(comparison: dict[str, Any]) -> None:
    few, all_films = row(comparison, "warm")["films"], row(comparison, "text")["films"]
    beyond = {(pair["one"], pair["other"]): pair.get("beyond") for pair in comparison["differences"]}
    assert beyond["text", "warm"] == [all_films - few, 0]
    assert beyond["warm", "frozen"] is None
    assert beyond["svm", "text"] is None
    assert f"text {all_films} ({all_films - few} beyond those)" in comparison["notes"][0]
    text = (comparison["folder"] / "report" / "comparison.md").read_text()
    assert f"| {few} (beyond: {all_films - few} and 0) |" in text
    assert f"## On the {few} films that all have" in text


def test_genres_are_compared_on_the_films_that_all_models_have(comparison: dict[str, Any]) -> None:
    shared = read_result(comparison["folder"] / "warm-seed0", "test")
    of_text = read_result(comparison["folder"] / "text", "test")
    rows = np.isin(of_text.ids, shared.ids)
    expected = metrics(of_text.scores.logits[rows], of_text.scores.labels[rows], GENRE_NAMES)["per_genre"]
    found = row(comparison, "text")["per_genre"]
    assert {genre: found[genre]["films"] for genre in found} == {genre: expected[genre]["films"] for genre in found}
    assert found["Drama"]["f1"] == pytest.approx(expected["Drama"]["f1"])
    assert found["Drama"]["films"] == row(comparison, "warm")["per_genre"]["Drama"]["films"]


def test_runs_that_share_only_some_films_are_compared_on_those(tmp_path: Path) -> None:
    one = write_plain(tmp_path / "one", 1.0, 1, films=100)
    other = write_plain(tmp_path / "other", 2.0, 1, films=150, first=60)
    labels = drawn_labels(150)
    for run, films in ((one, slice(0, 100)), (other, slice(60, 150))):  # of the same films
        logits = drawn_logits(labels, 1.0 if run is one else 2.0, 1)
        write_evaluation(run, "test", np.arange(150)[films], logits[films], labels[films])
    (pair,) = compared(read_models([one, other], "test"), resamples=QUICK)["differences"]
    assert (pair["films"], pair["beyond"]) == (40, [50, 60])


def test_all_pairs_are_compared_on_the_films_that_all_have_too(comparison: dict[str, Any]) -> None:
    few, pairs = comparison["shared_films"], comparison["differences_on_shared_films"]
    assert {pair["films"] for pair in pairs} == {few}
    (pair,) = (pair for pair in pairs if {pair["one"], pair["other"]} == {"svm", "text"})
    one, other = (row(comparison, pair[side])["on_shared_films"]["micro_f1"]["value"] for side in ("one", "other"))
    assert pair["measures"]["micro_f1"]["value"] == pytest.approx(one - other)
    text = (comparison["folder"] / "report" / "comparison.md").read_text()
    assert "## Differences in points on those that all have, 95 % interval" in text


def test_runs_on_the_same_films_are_told_nothing_of_films_beyond(tmp_path: Path) -> None:
    runs = [write_plain(tmp_path / name, skill, 1) for name, skill in (("a", 1.0), ("b", 2.0))]
    comparison = compare(runs, tmp_path / "report", resamples=20)
    assert "beyond" not in json.dumps(comparison)
    assert "that all have" not in (tmp_path / "report" / "comparison.md").read_text()


def test_a_difference_of_seeds_is_the_difference_of_their_means(comparison: dict[str, Any]) -> None:
    pair = comparison["differences"][0]
    means = [row(comparison, name)["on_shared_films"]["mean_average_precision"]["value"] for name in ("warm", "frozen")]
    assert pair["measures"]["mean_average_precision"]["value"] == pytest.approx(means[0] - means[1])


def test_an_interval_of_several_seeds_covers_the_luck_of_training(tmp_path: Path) -> None:
    """Two seeds of very different skill: their mean is less sure than that of two seeds that agree."""
    spread = [write_plain(tmp_path / f"spread-seed{seed}", skill, seed) for seed, skill in enumerate((1.0, 3.0))]
    alike = [write_plain(tmp_path / f"alike-seed{seed}", 2.0, seed) for seed in range(2)]
    found = compared(read_models([*spread, *alike], "test"), resamples=QUICK)
    widths = [row(found, name)["on_own_films"]["micro_f1"] for name in ("spread", "alike")]
    assert widths[0]["high"] - widths[0]["low"] > 2 * (widths[1]["high"] - widths[1]["low"])
    (pair,) = found["differences"]
    assert pair["measures"]["micro_f1"]["low"] < 0 < pair["measures"]["micro_f1"]["high"]


def test_any_folder_with_predictions_and_metrics_can_be_compared(tmp_path: Path) -> None:
    runs = [write_plain(tmp_path / name, skill, 1) for name, skill in (("a", 1.0), ("b", 2.0))]
    comparison = compared(read_models(runs, "test"), resamples=QUICK)
    assert [model["kind"] for model in comparison["models"]] == ["baseline", "baseline"]
    assert comparison["headline"]["question"] == "Is b better than a?"
    assert comparison["headline"]["verdict"] == "yes"
    assert comparison["models"][0]["cost"] is None
    assert not [note for note in comparison["notes"] if note.startswith("NOT ALL")]


def test_thresholds_that_were_never_kept_are_fitted_from_the_predictions_on_val(tmp_path: Path) -> None:
    run = write_plain(tmp_path / "a", 1.5, 1)
    kept = read_result(run, "test").scores.thresholds
    (run / "thresholds.json").unlink()
    np.testing.assert_array_equal(read_result(run, "test").scores.thresholds, kept)
    (run / "predictions-val.parquet").unlink()
    assert read_result(run, "test").scores.thresholds is None
    comparison = compared(read_models([run, write_plain(tmp_path / "b", 1.0, 2)], "test"), resamples=QUICK)
    assert comparison["models"][0]["on_own_films"]["micro_f1_fitted"] is None
    assert comparison["differences"][0]["measures"]["micro_f1_fitted"] is None
    assert comparison["headline"]["measure"] == "micro_f1"
    assert any(note.startswith("No thresholds for a") for note in comparison["notes"])


# --- the answer


def test_the_headline_answers_whether_end_to_end_was_worth_it(comparison: dict[str, Any]) -> None:
    head = comparison["headline"]
    assert head["question"] == "Is training end to end worth it?"
    assert (head["one"], head["other"], head["verdict"]) == ("warm", "frozen", "yes")
    assert head["low"] > 0
    assert head["value"] == comparison["differences"][0]["measures"]["micro_f1_fitted"]["value"]
    assert comparison["strongest"]["model"] == "warm"
    assert comparison["strongest"]["baseline"] == "svm"


def test_an_interval_with_zero_in_it_is_called_nothing_shown(tmp_path: Path, sample_shards: Path) -> None:
    runs = [
        write_run(tmp_path / name, sample_shards, 1.5, seed, options)
        for seed, (name, options) in enumerate((("frozen", FROZEN), ("warm", WARM)))
    ]
    head = compared(read_models(runs, "test"), resamples=QUICK)["headline"]
    assert head["low"] < 0 < head["high"]
    assert head["answer"].startswith("Not shown: ")
    turned = compared(read_models(runs[::-1], "test"), resamples=QUICK)[
        "headline"
    ]  # the order of the runs changes nothing
    assert (turned["value"], turned["low"], turned["high"]) == pytest.approx((head["value"], head["low"], head["high"]))


# --- costs, calibration, films


def test_cost_and_curves_come_from_the_record(comparison: dict[str, Any]) -> None:
    cost = row(comparison, "warm")["cost"]
    assert cost["hours"] == pytest.approx(40 * 0.5 / 3600)
    assert cost["device_hours"] == pytest.approx(2 * cost["hours"])
    assert (cost["ranks"], cost["device"], cost["steps"], cost["samples"]) == (2, "cpu", 40, 640)
    assert cost["samples_per_second"] == pytest.approx(32)
    assert cost["peak_memory_bytes"] == 2**30
    curves = row(comparison, "warm")["curves"]
    assert [point[0] for point in curves["val_map"]] == [10, 20, 30, 40]
    assert curves["val_map"][1][1] == pytest.approx(20 * 0.5 / 3600)
    assert row(comparison, "svm")["cost"]["hours"] == pytest.approx(3 / 3600)


def test_a_long_record_is_thinned_out_and_a_half_written_line_passed_over(tmp_path: Path) -> None:
    write_record(tmp_path, steps=5000)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    cost, curves = read_record(tmp_path)
    assert cost is not None
    assert cost.steps == 5000
    assert POINTS <= len(curves.train_loss) <= 2 * POINTS
    assert read_record(tmp_path / "nowhere")[0] is None


def test_steps_that_were_not_recorded_count_in_the_hours(tmp_path: Path) -> None:
    write_record(tmp_path, steps=40)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] % 5 == 0]
    (tmp_path / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    cost, _ = read_record(tmp_path)
    assert cost is not None
    assert cost.hours == pytest.approx(40 * 0.5 / 3600)
    assert cost.samples is None


def test_calibration_by_hand() -> None:
    logits = np.log(np.array([[0.9 / 0.1], [0.9 / 0.1], [0.3 / 0.7], [0.3 / 0.7]], np.float32))
    comparison = calibration(logits, np.array([[1], [0], [0], [0]], bool))
    assert comparison["expected_calibration_error"] == pytest.approx((2 * 0.4 + 2 * 0.3) / 4, abs=1e-6)
    assert comparison["brier"] == pytest.approx((0.01 + 0.81 + 2 * 0.09) / 4, abs=1e-6)
    assert [(point["pairs"], point["true"]) for point in comparison["curve"]] == [(2, 0), (2, 0.5)]


def test_wins_and_losses_read_film_info_with_titles_and_what_each_model_named(comparison: dict[str, Any]) -> None:
    films = comparison["films"]
    assert (films["one"], films["other"]) == ("warm", "frozen")
    assert len(films["wins"]) == 6
    gains = [film["gain_in_f1"] for film in films["wins"]]
    assert gains == sorted(gains, reverse=True)
    assert min(gains) > 0
    for film in films["wins"] + films["losses"]:
        assert film["title"]
        assert set(film["genres"]) | set(film["one"]) | set(film["other"]) <= set(GENRE_NAMES)
        f1 = [
            2 * len({*film["genres"]} & {*named}) / max(1, len(film["genres"]) + len(named))
            for named in (film["one"], film["other"])
        ]
        assert film["gain_in_f1"] == pytest.approx(f1[0] - f1[1])


# --- files and mistakes


def test_the_files_tell_the_same(comparison: dict[str, Any]) -> None:
    report = comparison["folder"] / "report"
    written = json.loads((report / "comparison.json").read_text())
    assert written == json.loads(json.dumps({key: value for key, value in comparison.items() if key != "folder"}))
    text = (report / "comparison.md").read_text()
    assert comparison["headline"]["answer"].split("; p")[0] in text  # a < is escaped
    assert "2018 study: LSTM (overview)" in text
    assert "| svm " in text
    page = (report / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(comparison["films"]["wins"]) + len(
        comparison["films"]["losses"]
    )


def test_the_csv_files_have_every_figure_once(comparison: dict[str, Any]) -> None:
    report = comparison["folder"] / "report"
    models, labels = (
        list(csv.DictReader((report / name).read_text().splitlines()))
        for name in ("comparison.csv", "comparison-labels.csv")
    )
    assert len(models) == len(comparison["models"]) * 2 * len(MEASURES)
    (found,) = [one for one in models if (one["model"], one["set"], one["measure"]) == ("warm", "own", "micro_f1")]
    figure = row(comparison, "warm")["on_own_films"]["micro_f1"]
    assert [float(found[name]) for name in ("value", "low", "high", "sd")] == [
        figure[name] for name in ("value", "low", "high", "sd")
    ]
    assert (found["kind"], found["seeds"], found["samples"]) == (
        "end to end",
        "2",
        str(row(comparison, "warm")["films"]),
    )
    (found,) = [one for one in labels if (one["model"], one["label"], one["measure"]) == ("svm", "Drama", "f1_fitted")]
    drama = row(comparison, "svm")["per_genre"]["Drama"]
    assert [float(found[name]) for name in ("value", "low", "high")] == [
        drama[name] for name in ("f1_fitted", "f1_fitted_low", "f1_fitted_high")
    ]


@pytest.mark.parametrize("choose", ["many", "one"])
def test_a_report_on_other_data_has_its_words_and_ids_and_nothing_of_2018(choose: Choose, tmp_path: Path) -> None:
    declared = replace(ARTICLES, labels=replace(ARTICLES.labels, choose=choose))
    topics, keys = drawn_topics(80), [f"article-{number}" for number in range(80)]
    runs = [tmp_path / name for name in ("a", "b")]
    for run, skill in zip(runs, (1.0, 3.0), strict=True):
        for split in ("val", "test"):
            write_evaluation(run, split, np.arange(80), drawn_logits(topics, skill, 1), topics, declared, keys)
    comparison = compare(runs, tmp_path / "report", resamples=QUICK)
    assert comparison["headline"]["measure"] == {"many": "micro_f1_fitted", "one": "accuracy"}[choose]
    assert comparison["films"]["wins"][0]["title"].startswith("article-")
    page = (tmp_path / "report" / "index.html").read_text().split("</style>")[1].split("<script>")[0]
    text = re.sub('(id|class|href)="[^"]*"', "", page) + (tmp_path / "report" / "comparison.md").read_text()
    assert "articles" in text
    assert "threshold" in text if choose == "many" else "threshold" not in text
    assert re.findall(r"\b(films?|genres?|2018)\b", text.replace("genre_dist", "").replace("genre-dist", "")) == []


def test_runs_with_one_label_and_with_any_number_cannot_be_compared(tmp_path: Path) -> None:
    topics = drawn_topics(40)
    for name, choose in (("a", "one"), ("b", "many")):
        declared = replace(ARTICLES, labels=replace(ARTICLES.labels, choose=choose))
        write_evaluation(tmp_path / name, "test", np.arange(40), drawn_logits(topics, 1.0, 1), topics, declared)
    with pytest.raises(ValueError, match="have other topics: they cannot be compared"):
        read_models([tmp_path / "a", tmp_path / "b"], "test")


def test_shards_that_are_gone_cost_only_the_pictures(tmp_path: Path, sample_shards: Path) -> None:
    runs = [write_run(tmp_path / name, sample_shards, skill, skill) for name, skill in (("a", 1), ("b", 2))]
    comparison = compare(runs, tmp_path / "report", resamples=50, shards=tmp_path / "gone")
    assert any("--shards" in note for note in comparison["notes"])
    assert comparison["films"]["wins"]


def test_films_are_shown_with_their_texts_as_the_tokens_spell_them(
    comparison: dict[str, Any], sample_shards: Path
) -> None:
    films = comparison["films"]["wins"] + comparison["films"]["losses"]
    manifest = load_manifest(sample_shards)
    words = {film.id: " ".join(film.words or ()) for film in shard_films(manifest, ["test"])}
    page = (comparison["folder"] / "report" / "index.html").read_text()
    for film in films:
        text = film["texts"]["overview"]
        assert text.removesuffix("…") == words[film["tmdb_id"]][: len(text.removesuffix("…"))]
        assert len(text) > 20
        assert str(escape(text)) in page


def test_a_long_text_is_cut_between_words(sample_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genre_dist.compare.differences.LONGEST_TEXT", 30)
    ids, _ = labels_of(load_manifest(sample_shards), "test")
    for info in read_film_info(sample_shards, "test", ids.tolist()).values():
        assert info.texts["overview"].endswith("…")
        assert len(info.texts["overview"]) <= 31


def test_a_damaged_film_is_shown_by_its_id_alone(shards_copy: Path) -> None:
    ids, _ = labels_of(load_manifest(shards_copy), "test")
    for shard in shards_copy.glob("test-*.tar"):
        data = shard.read_bytes()
        start = f'{{"tmdb_id": {ids[0]}'.encode()
        shard.write_bytes(data.replace(start, b"[" * len(start)))
    assert set(read_film_info(shards_copy, "test", ids[:3].tolist())) == set(ids[1:3].tolist())


def remove_evaluation(run: Path) -> None:
    (run / "predictions-test.parquet").unlink()


def damage_predictions(run: Path) -> None:
    (run / "predictions-test.parquet").write_bytes(b"PAR1 no")


def damage_metrics(run: Path) -> None:
    (run / "metrics-test.json").write_text("[]")


def uneven_rows(run: Path) -> None:
    table = pq.read_table(run / "predictions-test.parquet")
    logits = table["logits"].combine_chunks()
    offsets = logits.offsets.to_numpy().copy()
    offsets[1] += 1  # 20 numbers for the first film, 18 for the second: as many as before
    moved = pa.ListArray.from_arrays(pa.array(offsets), logits.values)
    pq.write_table(table.set_column(1, "logits", moved), run / "predictions-test.parquet")


def other_films(run: Path) -> None:
    write_plain(run, 1.0, 2, films=400, first=300)


def other_labels(run: Path) -> None:
    write_plain(run, 1.0, 2, label_seed=7)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (remove_evaluation, "genre-dist evaluate"),
        (damage_predictions, "predictions-test.parquet"),
        (damage_metrics, "metrics-test.json"),
        (uneven_rows, "some lists are not 19 long"),
        (other_films, "no common film"),
        (other_labels, "other genres"),
    ],
)
def test_runs_that_cannot_be_compared_are_named_in_one_line(
    harm: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_plain(tmp_path / name, 1.0, seed) for seed, name in enumerate(("a", "b"))]
    harm(runs[1])
    assert cli.main(["compare", *map(str, runs), "--out", str(tmp_path / "report"), "--resamples", "20"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "b" in line
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("p", "resamples", "comparison"),
    [(0.25, 2000, "0.250"), (2 / 2001, 2000, "< 0.002"), (2 / 10_001, 10_000, "< 0.0004")],
)
def test_a_p_value_is_told_as_exactly_as_the_resamples_allow(p: float, resamples: int, comparison: str) -> None:
    assert p_value(p, resamples) == comparison
