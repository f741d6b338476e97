"""What all figures made by matplotlib have in common."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from genre_dist.atomic import atomic_file
from genre_dist.printable import printable

matplotlib.rcParams["text.parse_math"] = False  # a $ is a $


def label(text: str, most: int) -> str:
    """Other people's text as it is shown in a figure, in so many letters."""
    told = printable(text)
    return told if len(told) <= most else f"{told[:most]}..."


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file."""
    with atomic_file(path) as file:
        figure.savefig(file, dpi=110, bbox_inches="tight", format="png")
    return path
