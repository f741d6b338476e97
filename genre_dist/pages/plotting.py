"""Helpers for all matplotlib figures."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from genre_dist.atomic import atomic_file
from genre_dist.printable import printable

matplotlib.rcParams["text.parse_math"] = False  # a $ in a title is no formula


def label(text: str, most: int) -> str:
    """Untrusted text made printable and cut to `most` letters, for figures."""
    safe = printable(text)
    return safe if len(safe) <= most else f"{safe[:most]}..."


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file."""
    with atomic_file(path) as file:
        figure.savefig(file, dpi=110, bbox_inches="tight", format="png")
    return path
