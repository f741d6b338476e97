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
    """An image [size, size, 3] in grey under its heat map [any, any] from 0 to 1 in warm colours."""
    size = picture.shape[0]
    warm = cv2.applyColorMap((255 * cv2.resize(heat, (size, size))).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return (0.5 * grey + 0.5 * warm).astype(np.uint8)


def film_figure(film: Explained, path: Path, aspect: float) -> None:
    """Write a sample's figure: a row per label with each image, its heat map and each text's words that count most.

    `aspect` is the height of an image as a share of its width.
    """
    images, texts = list(film.pictures) or [""], list(film.words) or [""]
    ratios = [1.0] * 2 * len(images) + [1.6] * len(texts)
    figure = Figure(figsize=(2.5 * sum(ratios), 3.2 * len(film.genres)), layout="constrained")
    axes = figure.subplots(len(film.genres), len(ratios), squeeze=False, width_ratios=ratios)
    for panels, (genre, above, attribution) in zip(axes, film.genres, strict=True):
        for panel in panels:
            panel.axis("off")
        for name, picture, heat in zip(images, panels[::2], panels[1::2], strict=False):
            picture.set_title(name if len(images) > 1 else "", fontsize=10)
            if name in attribution.heats:
                picture.imshow(film.pictures[name], aspect=aspect)
                heat.imshow(overlay(film.pictures[name], attribution.heats[name]), aspect=aspect)
        named = "named" if above > 0 else "not named"
        panels[1].set_title(f"{label(genre, LETTERS)}, {named} ({above:+.1f})", fontsize=10)
        for name, panel in zip(texts, panels[2 * len(images) :], strict=True):
            panel.set_title(name if len(texts) > 1 else "", fontsize=10)
            if film.words.get(name) and name in attribution.words:
                _bars(panel, film.words[name], attribution.words[name])
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
