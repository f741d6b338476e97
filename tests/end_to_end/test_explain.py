"""What speaks for a genre: laws of the attributions, and the page and files of `explain`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import chromium, console_errors, low_contrast, needs_chromium, open_page, outside_requests
from helpers import options
from PIL import Image

from genre_dist import cli
from genre_dist.config.files import parse_config
from genre_dist.explain.ablation import _derangement, ablate
from genre_dist.explain.attribution import Explainer
from genre_dist.inference.trained_model import load_run
from genre_dist.models.classifier import GenreClassifier
from genre_dist.stream.device_feed import FieldInput
from genre_dist.stream.manifest import load_manifest
from genre_dist.train import main as train_main

FROZEN = ("--model.text.frozen", "true", "--model.poster.frozen", "true")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sample_shards: Path) -> Path:
    """A run of two steps, both media."""
    folder = tmp_path_factory.mktemp("explained") / "run"
    assert train_main(options(sample_shards, folder, "--data.global_batch", 32, "--train.steps", 2)) == 0
    return folder


@pytest.mark.parametrize("more", [(), FROZEN])
def test_words_add_up_to_what_the_text_changes_and_the_model_stays_as_it_was(more: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    config = parse_config(options(Path("nowhere"), Path("nowhere"), *more)).config
    model = GenreClassifier(config.model, 19, 32, 50, None).eval()
    with torch.no_grad():  # encoders as random as these would hardly move a logit
        for parameter in model.parameters():
            parameter *= 2
    images, tokens = torch.randn(1, 3, 32, 32), torch.randint(2, 50, (1, 9))
    text = {"text": FieldInput(tokens, np.array([9]))}
    padding = {"text": FieldInput(torch.zeros_like(tokens), np.array([9]))}
    poster = {"poster": FieldInput(images)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = Explainer(model, 32)(poster | text, 4)
    with torch.no_grad():
        effect = model(poster | text) - model(poster | padding)
    words, heat = told.words["text"], told.heats["poster"]
    assert words.shape == (9,)
    assert words.sum() == pytest.approx(effect[0, 4].item(), abs=0.05 * float(np.abs(words).sum()))
    assert heat.shape == (32, 32)
    assert 0 <= heat.min() <= heat.max() <= 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.text_encoders["text"].frozen == bool(more)
    assert not model.training


def test_no_film_keeps_its_own_medium() -> None:
    random = np.random.default_rng(0)
    for films in (2, 3, 50):
        dealt = _derangement(films, random).numpy()
        assert sorted(dealt) == list(range(films))
        assert (dealt != np.arange(films)).all()


def test_a_medium_the_model_ignores_is_worth_nothing_and_the_other_something(run: Path, sample_shards: Path) -> None:
    loaded = load_run(run, torch.device("cpu"))
    width = loaded.model.text_encoders["text"].encoding_size
    with torch.no_grad():
        for head in loaded.model.heads:
            head[0].weight[:, :width] = 0
            head[0].weight[:, width:] *= 30
    told = ablate(loaded, load_manifest(sample_shards), "train", np.zeros(19))
    for lost in told["loss_without"]["text"].values():
        assert (lost["value"], lost["low"], lost["high"]) == pytest.approx((0, 0, 0), abs=1e-3)  # but for rounding
    assert max(abs(lost["value"]) for lost in told["loss_without"]["poster"].values()) > 0.005
    assert told["films"] == load_manifest(sample_shards).samples("train")


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verb leaves for two films."""
    out = tmp_path_factory.mktemp("explanation")
    assert cli.main(["explain", str(run), "--out", str(out), "--count", "2", "--genres", "2"]) == 0
    return out


def test_the_verb_explains_the_surest_films_in_page_pictures_and_numbers(run: Path, out: Path, tmp_path: Path) -> None:
    told = json.loads((out / "explanation.json").read_text())
    assert 1 <= len(told["films"]) <= 2
    assert set(told["ablation"]["loss_without"]) == {"text", "poster"}
    for film in told["films"]:
        assert len(film["explained"]) == 2
        assert film["explained"][0]["words"]
        with Image.open(out / f"film-{film['tmdb_id']}.png") as picture:
            assert picture.width > 500
    assert (out / "ablation.png").stat().st_size > 5000
    chosen = str(told["films"][-1]["tmdb_id"])
    more = ["--films", chosen, "--genres", "1", "--no_ablation"]
    assert cli.main(["explain", str(run), "--out", str(tmp_path), *more]) == 0
    again = json.loads((tmp_path / "explanation.json").read_text())
    assert [str(film["tmdb_id"]) for film in again["films"]] == [chosen]
    assert again["ablation"] is None


@pytest.mark.browser
@needs_chromium
def test_the_page_is_readable_on_a_phone_and_asks_no_network(out: Path) -> None:
    with chromium() as driver:
        for dark in (False, True):
            open_page(driver, out / "index.html", 390, dark)
            assert low_contrast(driver) == []
            assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        assert outside_requests(driver) == []
        assert console_errors(driver) == []


@pytest.mark.parametrize(("films", "words"), [("999999", "no film 999999"), ("x", "--films")])
def test_films_that_are_not_there_are_named(
    films: str, words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["explain", str(run), "--out", str(tmp_path / "out"), "--films", films]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
