"""Images found by the search are taken into a catalogue: of several files for one sample, the first that looks best."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from genre_dist.catalogue.catalogue import write_image
from genre_dist.catalogue.poster_search import Look, Poster, TarMember
from genre_dist.storage import sha256_of

EMPTY = "failed: the file is empty"


class Taken(NamedTuple):
    """The image of one sample in the catalogue."""

    size: int
    sha256: str
    look: Look


def take(image: Poster, target: Path, before: Taken | None) -> Taken | None:
    """Put an image at its place; None, and nothing is done, if the one taken before looks as good."""
    if before is not None and image.look <= before.look:
        return None
    size, sha256 = _link(image.source, target) or write_image(target, image.read())
    return Taken(size, sha256, image.look)


def _link(source: Path | TarMember, target: Path) -> tuple[int, str] | None:
    """Hard-link a file into the catalogue, which needs no space; returns its size and SHA-256.

    Returns None for files in tars and on other file systems, which have to be copied.
    """
    if isinstance(source, TarMember):
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not (target.exists() and target.samefile(source)):  # the link of a killed import
            target.unlink(missing_ok=True)
            os.link(source.resolve(), target)
    except OSError:
        return None
    return target.stat().st_size, sha256_of(target)


def image_columns(image: Taken | None, prefix: str) -> dict[str, Any]:
    """The catalogue's three columns on an image: status, bytes and SHA-256."""
    if image is None:
        status, size, sha256 = "none", 0, ""
    else:
        status, size, sha256 = "ok" if image.size else EMPTY, image.size, image.sha256
    return {f"{prefix}status": status, f"{prefix}bytes": size, f"{prefix}sha256": sha256}


def check_paths(table: Path, images: list[Path], out: Path) -> None:
    """Raise ValueError for a path that does not exist or lies in the folder that is written."""
    for path in (table, *images):
        if not path.exists():
            raise ValueError(f"{path} does not exist; check --table and --posters")
        if path.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{path} lies inside --out {out}, which this import writes; give another --out")
