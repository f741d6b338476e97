"""Late fusion: its laws on drawn predictions, and the folder that it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from one_label import ARTICLES, drawn_topics
from study_runs import drawn_labels, drawn_logits, write_evaluation

from genre_dist import cli
from genre_dist.fusion.late_fusion import Joined, fit_weights, fuse, prior_of
from genre_dist.metrics.choosing import log_losses
from genre_dist.metrics.derived import FILE, Derived, read_derived, write_derived
from genre_dist.metrics.evaluation_files import declared_of, read_evaluation
from genre_dist.metrics.thresholds import fit_thresholds, load_thresholds
from genre_dist.schema import TMDB, Choose, Schema

pytestmark = pytest.mark.slow

FIRST_ID = 1000


@st.composite
def joined(draw: st.DrawFn, choose: Choose) -> Joined:
    """Predictions of two or three models of any skill and scale, each of which lacks some samples."""
    random, samples = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.integers(1, 40))
    labels = random.random((samples, 4)) < 0.3
    if choose == "one":
        labels = np.eye(4, dtype=bool)[random.integers(0, 4, samples)]
    has = random.random((draw(st.integers(2, 3)), samples)) < draw(st.floats(0.3, 1))
    has[0] |= ~has.any(axis=0)
    skills = draw(st.lists(st.floats(-2, 4), min_size=len(has), max_size=len(has)))
    scale = draw(st.sampled_from([0.1, 1.0, 20.0]))
    logits = scale * (random.normal(size=(len(has), samples, 4)) + np.array(skills)[:, None, None] * labels - 1)
    return Joined(labels, has, np.where(has[:, :, None], logits, 0).astype(np.float32))


def loss(logits: NDArray[np.floating], labels: NDArray[np.bool_], choose: Choose) -> float:
    return float(log_losses(logits.astype(np.float64), labels, choose).mean())


# ---- the weights


@pytest.mark.parametrize("choose", ["many", "one"])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_the_fit_is_at_least_as_good_as_each_model_alone_and_as_their_mean(data: st.DataObject, choose: Choose) -> None:
    samples = data.draw(joined(choose))
    prior = prior_of(samples.labels, choose)
    weights = fit_weights(samples, prior, choose)
    assert all((own >= 0).all() for own in weights.values())
    fused, mean = fuse(samples, prior, weights), fuse(samples, prior, {})
    slack = 1e-5  # fused logits are rounded to fp32
    assert loss(fused, samples.labels, choose) <= loss(mean, samples.labels, choose) + slack
    for has, logits in zip(samples.has, samples.logits, strict=True):
        if has.any():
            labels = samples.labels[has]
            assert loss(fused[has], labels, choose) <= loss(logits[has], labels, choose) + slack


@pytest.mark.parametrize("choose", ["many", "one"])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_no_other_weights_near_the_fitted_ones_are_better(data: st.DataObject, choose: Choose) -> None:
    samples = data.draw(joined(choose))
    prior = prior_of(samples.labels, choose)
    weights = fit_weights(samples, prior, choose)
    best = loss(fuse(samples, prior, weights), samples.labels, choose)
    for members, own in weights.items():
        for moved in (own * 1.05, own * 0.95, np.maximum(0, own + 0.05), *np.maximum(0, own - 0.05 * np.eye(len(own)))):
            other = fuse(samples, prior, {**weights, members: moved})
            assert loss(other, samples.labels, choose) >= best - 1e-4


def test_a_model_of_noise_gets_no_weight_and_one_that_exaggerates_a_small_one() -> None:
    labels = drawn_labels(2000)
    prior, skilled = prior_of(labels, "many"), drawn_logits(labels, 3.0, 1)
    noise = np.random.default_rng(7).normal(size=labels.shape)

    def weights(*logits: NDArray[np.floating]) -> list[float]:
        samples = Joined(labels, np.ones((len(logits), len(labels)), bool), np.stack(logits).astype(np.float32))
        return next(iter(fit_weights(samples, prior, "many").values())).tolist()

    alone, of_noise = weights(skilled, noise)
    assert of_noise < 0.05 * alone
    assert weights(prior + 5 * (skilled - prior), noise)[0] == pytest.approx(alone / 5, rel=0.01)


def test_models_with_a_sample_decide_alone_and_a_set_without_weights_takes_the_mean() -> None:
    labels = drawn_labels(3)
    has = np.array([[True, True, False], [False, True, True]])
    logits = np.where(has[:, :, None], np.arange(6).reshape(2, 3, 1) * np.ones(labels.shape), 0).astype(np.float32)
    fused = fuse(Joined(labels, has, logits), np.full(labels.shape[1], 0.5), {(1,): np.array([2.0])})
    assert [set(row) for row in fused.tolist()] == [{0.0}, {2.5}, {0.5 + 2 * (5 - 0.5)}]


def test_a_label_without_positives_is_rare_and_not_impossible() -> None:
    labels = np.zeros((9, 2), bool)
    labels[:3, 0] = True
    np.testing.assert_allclose(prior_of(labels, "many"), np.log([3.5 / 6.5, 0.5 / 9.5]))
    np.testing.assert_allclose(np.exp(prior_of(labels, "one")).sum(), 1)


# ---- the verb


def write_runs(folder: Path, declared: Schema = TMDB, films: int = 120) -> list[Path]:
    """A text run of two seeds on all films and a poster run on the last two thirds, with other ids in test than val."""
    draw = drawn_labels if declared == TMDB else drawn_topics
    runs = [folder / name for name in ("text-seed0", "text-seed1", "poster-seed0")]
    for number, (run, first) in enumerate(zip(runs, (0, 0, films // 3), strict=True)):
        for split, shift in (("val", 0), ("test", 1)):
            labels = draw(films, shift)
            ids, keys = FIRST_ID * (1 + shift) + np.arange(films), [f"key {row}" for row in range(films)]
            logits = drawn_logits(labels, 1.5, number)
            of_data = () if declared == TMDB else (declared, keys[first:])
            write_evaluation(run, split, ids[first:], logits[first:], labels[first:], *of_data)
    return runs


def fused(runs: list[Path], out: Path, *more: str) -> int:
    return cli.main(["fuse", *map(str, runs), "--out", str(out), *more])


def test_a_fusion_has_the_files_of_an_evaluation_and_says_what_it_was_made_of(tmp_path: Path) -> None:
    text, _, poster = write_runs(tmp_path)
    out = tmp_path / "fused"
    assert fused([text, poster], out) == 0
    for split in ("val", "test"):
        predictions, figures = read_evaluation(out, split)
        assert predictions.ids.tolist() == read_evaluation(text, split)[0].ids.tolist()
        assert figures["films"] == 120
        assert "fitted" in figures
    val, names = read_evaluation(out, "val")[0], list(read_evaluation(out, "val")[1]["per_genre"])
    np.testing.assert_allclose(load_thresholds(out, names), fit_thresholds(val.logits, val.labels))
    derived = read_derived(out)
    assert derived is not None
    assert (derived["kind"], derived["title"]) == ("late fusion", "Late fusion of text and poster")
    assert derived["of"] == [str(text), str(poster)]
    assert derived["weights"] is not None
    assert {name: list(own) for name, own in derived["weights"].items()} == {
        str(text): [str(text)],
        f"{text} and {poster}": [str(text), str(poster)],
    }


def test_on_val_the_fusion_is_better_than_each_member(tmp_path: Path) -> None:
    text, _, poster = write_runs(tmp_path)
    assert fused([text, poster], tmp_path / "fused") == 0
    mine, _ = read_evaluation(tmp_path / "fused", "val")
    for run in (text, poster):
        its, _ = read_evaluation(run, "val")
        rows = np.searchsorted(mine.ids, its.ids)
        assert loss(mine.logits[rows], its.labels, "many") < loss(its.logits, its.labels, "many")


def test_a_run_with_itself_and_equal_weights_has_its_own_figures(tmp_path: Path) -> None:
    run, *_ = write_runs(tmp_path)
    assert fused([run, run], tmp_path / "twice", "--weights", "equal") == 0
    for split in ("val", "test"):
        (once, figures), (twice, same) = (read_evaluation(folder, split) for folder in (run, tmp_path / "twice"))
        np.testing.assert_array_equal(twice.logits, once.logits)
        assert same == figures
    assert (tmp_path / "twice" / "thresholds.json").read_bytes() == (run / "thresholds.json").read_bytes()


def test_an_ensemble_of_one_run_is_that_run(tmp_path: Path) -> None:
    text, *_ = write_runs(tmp_path)
    assert fused([text], tmp_path / "alone", "--weights", "equal") == 0
    mine, its = (read_evaluation(run, "test")[0] for run in (tmp_path / "alone", text))
    np.testing.assert_allclose(mine.logits, its.logits, atol=1e-5)


def test_an_ensemble_is_the_mean_of_the_seeds_that_have_a_film(tmp_path: Path) -> None:
    first, second, _ = write_runs(tmp_path)
    ids, labels = FIRST_ID + np.arange(90, 150), drawn_labels(150)[90:]
    labels[:30] = read_evaluation(first, "val")[0].labels[90:]
    write_evaluation(second, "val", ids, drawn_logits(labels, 1.0, 9), labels)
    assert fused([first, second], tmp_path / "ensemble", "--weights", "equal") == 0
    mine, one, two = (read_evaluation(run, "val")[0] for run in (tmp_path / "ensemble", first, second))
    assert mine.ids.tolist() == list(range(FIRST_ID, FIRST_ID + 150))
    np.testing.assert_array_equal(mine.logits[:90], one.logits[:90])
    np.testing.assert_allclose(mine.logits[90:120], (one.logits[90:] + two.logits[:30]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(mine.logits[120:], two.logits[30:])
    derived = read_derived(tmp_path / "ensemble")
    assert derived is not None
    assert (derived["kind"], derived["title"]) == ("ensemble", "Ensemble of 2 runs of text")
    assert derived["weights"] is None


def test_films_of_test_like_which_val_has_none_get_equal_weights_and_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _, poster = write_runs(tmp_path)
    its, _ = read_evaluation(text, "test")
    write_evaluation(text, "test", its.ids[60:], its.logits[60:], its.labels[60:])
    assert fused([text, poster], tmp_path / "fused") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"no film of val is in {poster} alone: equal weights for the 20 of test" in said
    assert "weights, fitted on 40 films of val" in said
    mine, _ = read_evaluation(tmp_path / "fused", "test")
    alone = mine.ids < its.ids[60]
    np.testing.assert_allclose(mine.logits[alone], read_evaluation(poster, "test")[0].logits[: alone.sum()], atol=1e-5)


def test_where_a_sample_has_one_label_the_softmax_is_fitted_and_no_threshold(tmp_path: Path) -> None:
    text, _, poster = write_runs(tmp_path, ARTICLES)
    assert fused([text, poster], tmp_path / "fused") == 0
    assert not (tmp_path / "fused" / "thresholds.json").exists()
    (mine, figures), (its, _) = (read_evaluation(run, "val") for run in (tmp_path / "fused", text))
    assert (mine.keys, figures["films"]) == (its.keys, 120)
    assert declared_of(figures) == ARTICLES
    assert loss(mine.logits, mine.labels, "one") < loss(its.logits, its.labels, "one")


def test_what_cannot_be_fused_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, other, poster = write_runs(tmp_path)
    (articles, *_) = write_runs(tmp_path / "of_articles", ARTICLES)
    labels = drawn_labels(120, seed=5)
    for split in ("val", "test"):
        write_evaluation(tmp_path / "relabelled", split, FIRST_ID + np.arange(120), drawn_logits(labels, 1, 1), labels)
    (other / "predictions-val.parquet").unlink()
    out = tmp_path / "out"
    for runs, more, problem in (
        ([text], (), "a fusion needs two runs or more"),
        ([text, text], (), "is named twice"),
        ([text, other], (), f"run `genre-dist evaluate {other} --split val`"),
        ([text, articles], (), "have other genres"),
        ([text, tmp_path / "relabelled"], ("--weights", "equal"), "others have other genres in"),
    ):
        assert fused(runs, out, *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert problem in line
        assert not out.exists()
    assert fused([text, poster], poster) == 2
    assert f"{poster} is one of the runs" in capsys.readouterr().err


# ---- the comparison


def test_compare_shows_fusions_ensembles_and_hidden_fields_as_what_they_are(tmp_path: Path) -> None:
    first, second, poster = write_runs(tmp_path)
    both = [tmp_path / f"both-seed{seed}" for seed in range(2)]
    for out, text in zip(both, (first, second), strict=True):
        assert fused([text, poster], out) == 0
    assert fused([first, second], tmp_path / "seeds", "--weights", "equal") == 0
    no_poster = write_runs(tmp_path / "hidden")[0]
    hidden = Derived(
        kind="hidden",
        title="Poster hidden from both",
        of=["both"],
        hidden=["poster"],
        weights=None,
        data_fingerprint=None,
        made_from=[{}],
    )
    write_derived(no_poster, hidden)
    folders = map(str, [first, *both, tmp_path / "seeds", no_poster])
    assert cli.main(["compare", *folders, "--out", str(tmp_path / "report"), "--resamples", "50"]) == 0
    models = json.loads((tmp_path / "report" / "comparison.json").read_text())["models"]
    assert [(model["kind"], model["title"], len(model["runs"])) for model in models[1:]] == [
        ("late fusion", "Late fusion of text and poster", 2),
        ("ensemble", "Ensemble of 2 runs of text", 1),
        ("hidden", "Poster hidden from both", 1),
    ]
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(f"<td>{kind}</td>" in page for kind in ("late fusion", "ensemble", "fields hidden"))


def test_a_changed_description_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _, poster = write_runs(tmp_path)
    out = tmp_path / "fused"
    assert fused([text, poster], out) == 0
    (out / FILE).write_text((out / FILE).read_text().replace("Late fusion of", "Early fusion of"))
    capsys.readouterr()
    assert cli.main(["compare", str(text), str(out), "--out", str(tmp_path / "report")]) == 2
    assert f"{out / FILE}: changed since it was written" in capsys.readouterr().err
