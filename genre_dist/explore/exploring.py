"""Explore shards or a catalogue: one pass over the films, then statistics, figures and a page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genre_dist.atomic import atomic_file
from genre_dist.catalogue.catalogue import count_rows, movies_file
from genre_dist.explore.counting import Counts
from genre_dist.explore.figures import cloud_names, draw
from genre_dist.explore.findings import findings
from genre_dist.genres import GENRE_NAMES
from genre_dist.pages.rendering import write_page
from genre_dist.progress import progress_bar
from genre_dist.schema import TMDB, plural
from genre_dist.stream.manifest import FILE as MANIFEST
from genre_dist.stream.manifest import SPLITS, load_manifest
from genre_dist.tars.films import Film, catalogue_films, shard_films

NUMBERS = "explore.json"


def explore(source: Path, out: Path, text: str, poster_share: float) -> Counts:
    """Write explore.json (last: it marks the exploration complete), the figures and index.html; returns the counts.

    RAM holds one film and the counters. Raises ValueError if the source is neither shards nor a catalogue, or has no
    film with a known genre.
    """
    if not 0 <= poster_share <= 1:
        raise ValueError(f"--poster_share is from 0 to 1, not {poster_share}")
    exploration: dict[str, Any] = {"source": str(source), "text": text, "data_fingerprint": None}
    films: Iterator[Film]
    if (source / MANIFEST).is_file() or not movies_file(source).is_file():
        manifest = load_manifest(source)
        exploration |= {"text": manifest.text["source"], "data_fingerprint": manifest.fingerprint}
        films, total = shard_films(manifest), sum(manifest.samples(split) for split in SPLITS)
        counts = Counts([genre.name for genre in manifest.genres], poster_share, manifest.declared)
    else:
        films, total, counts = catalogue_films(source, text), count_rows(source), Counts(GENRE_NAMES, poster_share)
    declared = counts.declared
    with progress_bar() as progress:
        for film in progress.track(films, total=total, description=f"counting {declared.samples}"):
            counts.add(film)
        if not counts.films.sum():
            raise ValueError(f"{source}: no {declared.sample} with a known {declared.label}")
        if exploration["data_fingerprint"]:
            counts.short_sides[:] = 0  # packing made all posters the same size
        exploration |= findings(counts)
        out.mkdir(parents=True, exist_ok=True)
        drawing = progress.add_task("drawing", total=None)

        def drawn(name: str) -> None:
            progress.update(drawing, description=f"drawing {name}", advance=1)

        files = draw(exploration, out, drawn, declared)
    figures = {name: file.read_bytes() for name, file in files.items()}
    context = {"figures": figures, "faults": counts.faults, "clouds": cloud_names(exploration["words"])}
    write_page(out / "index.html", "exploration.html", exploration=exploration, **context, **page_words(counts))
    with atomic_file(out / NUMBERS, "w") as file:
        json.dump(exploration, file, indent=1)
    return counts


def page_words(counts: Counts) -> dict[str, Any]:
    """What the page calls samples, labels and images, and whether it shows months."""
    declared = counts.declared
    of_tmdb = declared == TMDB
    return {
        "declared": declared,
        "plural": plural(declared.label),
        "images": plural(counts.image),
        "split_by": "film id" if of_tmdb else declared.split_by,
        "has_months": of_tmdb or bool(counts.months.sum()),
    }
