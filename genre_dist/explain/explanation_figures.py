"""Explanations as PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from genre_dist.compare.shown_measures import SHOWN
from genre_dist.explain.attribution import Explained
from genre_dist.pages.plotting import label, save
from genre_dist.schema import Schema

ACCENT, AGAINST = "#0a5c8c", "#9a4a1f"
WORDS = 12  # of a text, those of the largest attribution
LETTERS = 80  # of a title or word


def overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A poster [size, size, 3] in grey under its heat map [any, any] from 0 to 1 in warm colours."""
    size = picture.shape[0]
    warm = cv2.applyColorMap((255 * cv2.resize(heat, (size, size))).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return (0.5 * grey + 0.5 * warm).astype(np.uint8)


def film_figure(film: Explained, path: Path) -> None:
    """Write a film's figure: a row per genre with the poster, its heat map and the words that count most."""
    rows = len(film.genres)
    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False, width_ratios=(1, 1, 1.6))
    for (poster, heat, words), (genre, above, attribution) in zip(axes, film.genres, strict=True):
        for panel in (poster, heat):
            panel.axis("off")
        if film.picture is not None and attribution.heat is not None:
            poster.imshow(film.picture, aspect=1.5)
            heat.imshow(overlay(film.picture, attribution.heat), aspect=1.5)
        heat.set_title(f"{label(genre, LETTERS)}, {'named' if above > 0 else 'not named'} ({above:+.1f})", fontsize=10)
        words.axis("off")
        if attribution.words is not None and film.words:
            _bars(words, film.words, attribution.words)
    title = film.info.title if film.info else str(film.film)
    figure.suptitle(f"{label(title, LETTERS)}: {label(', '.join(film.true), LETTERS)}", fontsize=11)
    save(figure, path)


def _bars(axes: Any, words: list[str], values: NDArray[np.float32]) -> None:
    telling = np.argsort(-np.abs(values))[:WORDS]
    telling = telling[np.argsort(values[telling])]
    axes.axis("on")
    axes.barh(range(len(telling)), values[telling], color=[ACCENT if values[at] > 0 else AGAINST for at in telling])
    axes.set_yticks(range(len(telling)), [label(words[at], LETTERS) for at in telling], fontsize=8)
    axes.set_xlabel("adds to the logit", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def ablation_figure(ablation: dict[str, Any], measures: Sequence[str], path: Path, declared: Schema) -> None:
    """Write the loss of each measure when a medium is shuffled, with 95 % intervals."""
    shown = SHOWN[declared.labels.choose].names
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    names = [(medium, measure) for medium in ablation["loss_without"] for measure in measures]
    known = [(medium, measure, ablation["loss_without"][medium][measure]) for medium, measure in names]
    known = [row for row in known if row[2] is not None]
    values = np.array([[100 * row[key] for key in ("value", "low", "high")] for _, _, row in known])
    error = np.abs(values[:, 1:] - values[:, :1]).T
    axes.errorbar(values[:, 0], range(len(known)), xerr=error, fmt="o", color=ACCENT)
    axes.axvline(0, color="0.5", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(known)), [f"{medium} shuffled: {shown[measure]}" for medium, measure, _ in known])
    axes.invert_yaxis()
    axes.set_xlabel("points lost")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
