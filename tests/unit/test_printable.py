"""Other people's text as it is shown: on a terminal, in Markdown, in HTML, in figures. It has no effect of its own."""

import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from study_runs import drawn_labels, drawn_logits

from genre_dist import cli
from genre_dist.compare.comparison import compare
from genre_dist.explain.attribution import Attribution
from genre_dist.explain.explanation import Explained
from genre_dist.explain.explanation_figures import film_figure
from genre_dist.explore.figures import cloud_names, draw
from genre_dist.metrics.evaluation_files import Predictions, write_evaluation
from genre_dist.metrics.measures import metrics
from genre_dist.pages.rendering import render
from genre_dist.printable import markdown, printable, terminal
from genre_dist.training.evaluation import print_evaluation

TEXT = st.text(st.characters(categories=None, exclude_categories=()), max_size=40)
EVIL = (
    "[/]",
    "[bold]x",
    "<script>alert(1)</script>",
    "`a` | b",
    "$\\frac{",
    "\x1b[31mred\x07",
    "up\u202edown",
    ":bomb:",
)
ODD = (
    *EVIL,
    "12",
    "a.b",
    "../../x",
    "x" * 300,
    "\ud800",
    "两 部",
    "a\nb",
    "=1+1",
    "- [l](http://x.example) *s* ![i](u)",
)
GENRES = [name for name in ODD if name != "\ud800"]  # which no JSON file can hold


# --- one line for a terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Amélie 天使", "Amélie 天使"),
        ("two  blanks", "two  blanks"),
        ("a\nb\t c", "a b c"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("exe\u202egpj", "exe\\u202egpj"),
        ("\ud800", "\\ud800"),
        ("no\u00a0break", "no break"),
    ],
)
def test_what_has_an_effect_on_a_terminal_is_spelt_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(TEXT)
def test_any_text_becomes_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


def test_an_error_is_one_printable_line_whatever_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path / "a\nb\x1b[31m\u202e")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()


def test_ctrl_c_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("genre_dist.explore.exploring.explore", interrupted)
    assert cli.main(["explore", str(tmp_path), "--out", str(tmp_path / "out")]) == cli.STOPPED
    assert capsys.readouterr().err == "stopped\n"


def test_a_title_on_a_terminal_that_cannot_show_it_is_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    cli.main(["plan"])  # any verb
    print("天使")
    screen.flush()
    assert screen.buffer.getvalue() == b"\\u5929\\u4f7f\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", EVIL)
def test_a_console_takes_no_name_for_markup(name: str) -> None:
    screen = io.StringIO()
    terminal(file=screen, width=200).print(printable(name))
    assert screen.getvalue() == f"{printable(name)}\n"


# --- Markdown


@given(TEXT | st.text("\\`*_[]()<>&|~$!#:/@.-+=1 \nahttpsw", max_size=30))
def test_markdown_shows_any_text_as_it_is_and_nothing_else(text: str) -> None:
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = printable(text).strip()
    for document, around in ((f"- x {markdown(text)}\n", "li"), (f"# x {markdown(text)} x\n", "h1")):
        tags, told = read(reader.render(document))
        assert set(tags) <= {around, "ul"}
        assert shown in told
    tags, _ = read(reader.render(f"| a | b |\n| --- | --- |\n| {markdown(text)} | c |\n"))
    assert tags.count("td") == 2


def read(html: str) -> tuple[list[str], str]:
    """The tags and the text of a page."""
    tags: list[str] = []
    told: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

        def handle_data(self, data: str) -> None:
            told.append(data)

    reader = Reader()
    reader.feed(html)
    reader.close()
    return tags, "".join(told)


# --- everything that compare, explore and explain show


def write_odd_run(run: Path, skill: float) -> Path:
    """An evaluated run whose genres have odd names."""
    run.mkdir()
    for seed, split in enumerate(("val", "test")):
        labels = drawn_labels(60, seed)[:, : len(GENRES)]
        logits = drawn_logits(labels, skill, 1)
        told = {"split": split, "loss": 0.3, "left_out": 0, **metrics(logits, labels, GENRES)}
        write_evaluation(run, split, Predictions(np.arange(60), logits, labels), told)
    return run


def test_a_comparison_shows_odd_names_of_genres_and_runs_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("a|b`c`[bold]<img src=x onerror=alert(1)>", "\x1b[31m$\\sum_{\u202e_x_")
    runs = [write_odd_run(tmp_path / name, skill) for skill, name in enumerate(names)]
    compare(runs, tmp_path / "report", resamples=20)
    said = capfd.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())
    page = (tmp_path / "report" / "index.html").read_text()
    assert not set("\x1b\x07\u202e") & set(page)
    tags, _ = read(page)
    assert "img" not in tags
    assert tags.count("script") == 1
    tags, told = read(MarkdownIt("commonmark").enable("table").render((tmp_path / "report/comparison.md").read_text()))
    assert not {"img", "script", "code", "a"} & set(tags)
    assert all(re.sub(" +", " ", printable(name)).strip() in told for name in (*names, *GENRES))


def test_an_evaluation_shows_odd_names_of_genres_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    labels = drawn_labels(60)[:, : len(GENRES)]
    print_evaluation(
        {"split": "test", "loss": 0.3, "left_out": 0, **metrics(drawn_logits(labels, 1, 0), labels, GENRES)}
    )
    said = capfd.readouterr().out
    assert all(line.isprintable() for line in said.splitlines())
    assert all(f"│ {printable(name).strip()[:200]}" in said for name in GENRES)


@pytest.mark.slow
def test_figures_and_page_of_an_exploration_take_any_names_of_genres(tmp_path: Path) -> None:
    from genre_dist.explore.counting import Counts
    from genre_dist.explore.exploring import page_words
    from genre_dist.explore.findings import findings
    from genre_dist.tars.films import Film

    counts = Counts(ODD)
    for number in range(3 * len(ODD)):
        genres = (number % len(ODD), (number + 1) % len(ODD))
        words = ["x" * 3000, "$\\frac{", "\ud800", "\x1b[31m", "word"]
        counts.add(Film(number, "train", genres, "", words, "1999-05-01", None))
    told = findings(counts) | {"source": "<b>", "text": "overview"}
    files = draw(told, tmp_path)
    assert all(path.parent == tmp_path and path.name.isascii() for path in files.values())
    assert sorted(tmp_path.iterdir()) == sorted(files.values())
    assert len(set(cloud_names(ODD).values())) == len(ODD)
    pictures = {name: file.read_bytes() for name, file in files.items()}
    context = {"figures": pictures, "faults": ["<i>"], "clouds": cloud_names(told["words"])}
    page = render("exploration.html", exploration=told, **context, **page_words(counts))
    tags, _ = read(page)
    assert tags.count("script") == 1
    assert "b" not in tags
    assert "i" not in tags


def test_the_figure_of_a_film_takes_any_title_and_words(tmp_path: Path) -> None:
    words = ["$\\frac{", "\ud800", "\x1b[31m", "a\nb"]
    found = Attribution({}, {"overview": np.array([1, -1, 0.5, 0.1], np.float32)}, {})
    film = Explained(1, None, [*ODD], {"overview": words}, {}, [("$\\bad{", 0.3, found)])
    film_figure(film, tmp_path / "film.png", 1.5)
    with Image.open(tmp_path / "film.png") as picture:
        assert picture.size[0] < 3000
