"""The exploration's figures, each a PNG."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws without a display

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from wordcloud import WordCloud

from genre_dist.atomic import atomic_file
from genre_dist.explore.findings import THRESHOLDS
from genre_dist.pages.plotting import label, save
from genre_dist.schema import TMDB, Schema, plural

COLOUR, QUIET = "#2b6cb0", "#c3ccd6"
MONTHS = "JFMAMJJASOND"
LENGTHS_SHOWN = 200
LETTERS = 30  # of a name or word in a figure


def draw(
    findings: dict[str, Any],
    out: Path,
    progress: Callable[[str], None] = lambda name: None,
    declared: Schema = TMDB,
) -> dict[str, Path]:
    """Write all figures and return their files by name. A figure without data is left out."""
    samples, images = declared.samples, plural(declared.first("image"))
    drawn: dict[str, Callable[[], Figure]] = {"genres": lambda: _genres(findings, samples)}
    if findings["text_words"]["films"]:
        drawn["lengths"] = lambda: _lengths(findings["text_words"], samples)
    if declared.labels.choose == "many":
        drawn["together"] = lambda: _together(findings["together"], declared)
    if sum(findings["months"]["films"]):
        drawn["months"] = lambda: _months(findings, samples)
    for measure, unit in (("brightness", "mean luma, 0 to 255"), ("short_side", "shorter side, pixels")):
        if any(row[measure] for row in findings["posters"]["by_genre"].values()):
            drawn[measure] = partial(_boxes, findings, measure, unit, images)
    files = {}
    for name, make in drawn.items():
        progress(name)
        figure = make()
        files[name] = save(figure, out / f"{name}.png")
        plt.close(figure)
    for genre, name in cloud_names(findings["words"]).items():
        if frequent := findings["words"][genre]["frequent"]:
            progress(name)
            files[name] = _save_cloud(frequent, out / f"{name}.png")
    return files


def cloud_names(genres: Iterable[str]) -> dict[str, str]:
    """File names of the word clouds, such as `words-science_fiction`; equal names get a number."""
    names: dict[str, str] = {}
    for number, genre in enumerate(genres):
        name = "words-" + re.sub("[^a-z0-9]+", "_", genre.lower())[:LETTERS]
        names[genre] = f"{name}.{number}" if name in names.values() else name
    return names


def _label(name: str) -> str:
    return label(name, LETTERS)


def _genres(findings: dict[str, Any], samples: str) -> Figure:
    ranked = sorted(findings["genres"].items(), key=lambda item: item[1]["films"])
    figure, axes = plt.subplots(figsize=(7, 6))
    bars = axes.barh(range(len(ranked)), [row["films"] for _, row in ranked], color=COLOUR)
    axes.set_yticks(range(len(ranked)), [_label(name) for name, _ in ranked])
    axes.bar_label(bars, [f"{row['films']:,}" for _, row in ranked], padding=3, fontsize=9)
    axes.set_xlabel(samples)
    sns.despine(figure)
    return figure


def _lengths(text_words: dict[str, Any], samples: str) -> Figure:
    counts = np.array(text_words["texts_of_length"])
    clipped = np.append(counts[:LENGTHS_SHOWN], counts[LENGTHS_SHOWN:].sum())
    bins = np.add.reduceat(clipped, np.arange(0, len(clipped), 5))
    figure, axes = plt.subplots(figsize=(7, 3.5))
    axes.bar(np.arange(len(bins)) * 5, bins, width=5, align="edge", color=QUIET, edgecolor="white")
    top = axes.get_ylim()[1]
    for number, least in enumerate(THRESHOLDS):
        axes.axvline(least, color=COLOUR, lw=1)
        words = f"{text_words['at_least'][str(least)]:,} of {least} words or more"
        axes.text(least + 1, top * (1.22 - 0.07 * number), words, va="top", fontsize=8, color=COLOUR)
    axes.set_xlabel(f"words of a text, in fives; the last bar is {LENGTHS_SHOWN} and more")
    axes.set_ylabel(samples)
    sns.despine(figure)
    return figure


def _together(together: dict[str, Any], declared: Schema) -> Figure:
    films = np.array(together["films"], float)
    own = films.diagonal().copy()
    share = 100 * np.divide(films, own[:, None], out=np.zeros_like(films), where=own[:, None] > 0)
    np.fill_diagonal(share, np.nan)
    figure, axes = plt.subplots(figsize=(8, 7))
    sns.heatmap(
        share,
        ax=axes,
        cmap="Blues",
        xticklabels=[_label(name) for name in together["genres"]],
        yticklabels=[_label(name) for name in together["genres"]],
        annot=True,
        fmt=".0f",
        annot_kws={"size": 7},
        cbar_kws={"label": f"% of the row's {declared.samples} that are also of the column's {declared.label}"},
    )
    for edge in np.cumsum([len(cluster) for cluster in together["clusters"]])[:-1]:
        axes.axhline(edge, color="black", lw=1)
        axes.axvline(edge, color="black", lw=1)
    return figure


def _months(findings: dict[str, Any], samples: str) -> Figure:
    names = list(findings["months"]["share"])
    rows = -(-len(names) // 4)
    figure, panels = plt.subplots(rows, 4, figsize=(9, 1.6 * rows), sharex=True, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=False):
        share = 100 * np.array(findings["months"]["share"][name], float)  # None becomes NaN
        axes.plot(range(12), share, color=COLOUR, marker="o", ms=2.5)
        axes.axhline(np.average(np.nan_to_num(share), weights=findings["months"]["films"]), color=QUIET, lw=1)
        axes.set_title(_label(name), fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(12), list(MONTHS), fontsize=7)
        axes.tick_params(axis="y", labelsize=7)
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    figure.supylabel(f"% of the month's {samples}", fontsize=9)
    figure.tight_layout()
    return figure


def _boxes(findings: dict[str, Any], measure: str, unit: str, images: str) -> Figure:
    known = [(name, row[measure]) for name, row in findings["posters"]["by_genre"].items() if row[measure]]
    known.sort(key=lambda pair: pair[1]["0.5"])
    names = ("whislo", "q1", "med", "q3", "whishi")
    boxes = [dict(zip(names, row.values(), strict=True)) | {"label": _label(name), "fliers": []} for name, row in known]
    figure, axes = plt.subplots(figsize=(7, 6))
    axes.bxp(
        boxes, orientation="horizontal", patch_artist=True, boxprops={"facecolor": QUIET}, medianprops={"color": COLOUR}
    )
    axes.set_xlabel(f"{unit}; box: middle half of the {images}, whiskers: middle 90 %")
    sns.despine(figure)
    return figure


def _save_cloud(words: dict[str, int], path: Path) -> Path:
    frequencies: Counter[str] = Counter()
    for word, count in words.items():
        frequencies[_label(word)] += count  # long words are cut: without spaces, a text is one word
    cloud = WordCloud(width=480, height=280, background_color="white", colormap="Blues_r", random_state=0)
    image = cloud.generate_from_frequencies(frequencies).to_image()
    with atomic_file(path) as file:
        image.save(file, format="PNG", optimize=True)
    return path
