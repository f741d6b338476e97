"""The exploration as one HTML file that asks nothing of any network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genre_dist.atomic import atomic_file
from genre_dist.study.explore.figures import cloud_names
from genre_dist.study.report.page import render


def write_page(path: Path, told: dict[str, Any], figures: Mapping[str, Path], faults: Sequence[str]) -> None:
    """Write index.html with all figures (PNG files by name) in it."""
    pictures = {name: file.read_bytes() for name, file in figures.items()}
    with atomic_file(path, "w") as file:
        file.write(
            render("exploration.html", told=told, figures=pictures, faults=faults, clouds=cloud_names(told["words"]))
        )
