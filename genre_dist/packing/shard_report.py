"""What decides a shard's bytes, and the report that tells of a shard that is finished."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, get_args

from annotated_types import Interval, Len
from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.genres import GENRES
from genre_dist.packing.posters import Fit
from genre_dist.storage import AnyPath, read_bytes
from genre_dist.stream.manifest import Shard
from genre_dist.validation import Count, parse_json

RESIZED, ODD, UNREADABLE, NO_POSTER = "resized", "odd", "unreadable", "none"
"""What became of a poster, beside `posters.UNTOUCHED`."""
NO_PICTURE, NO_FILE, NOT_OPENED = "unreadable poster", "missing poster file", "poster file that cannot be opened"
"""Why films are left out for their posters."""

LARGEST_REPORT = 1 << 30
"""Bytes: a line for each odd poster of a large shard."""
_REMEDY = "run the same pack again, it makes the shard anew"
Int64 = Annotated[int, Interval(ge=-(2**63), lt=2**63)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a shard's bytes, beside its films. ValueError for a value that makes no sense."""

    require: tuple[str, ...] = ("poster", "overview")
    text: str = "overview"
    size: int = 256
    fit: Fit = "squash"
    quality: int = 90
    shard_size: int = 1000
    vectors_sha256: str = ""
    """Of the file of word vectors, '' without one: it decides which words seen once are kept."""
    vocabulary_sha256: str = ""

    def __post_init__(self) -> None:
        unknown = set(self.require) - {"poster", "overview"}
        if unknown:
            raise ValueError(f"--require knows poster and overview, not {', '.join(sorted(unknown))}")
        if self.text not in ("overview", "title", "both"):
            raise ValueError(f"--text is overview, title or both, not {self.text}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"--fit is {', '.join(get_args(Fit))}, not {self.fit}")
        if not 1 <= self.size <= 4096 or self.shard_size < 1:
            raise ValueError("--size goes from 1 to 4096, --shard_size is at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality goes from 1 to 100, not {self.quality}")


class Odd(TypedDict):
    """A poster that was packed though it is unusual."""

    tmdb_id: Int64
    odd: str


class UnusablePoster(TypedDict):
    """A poster that could not be packed."""

    tmdb_id: Int64
    problem: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a shard was made from, and what became of its films."""

    key: str
    """Of the recipe and the films, see `recipe_key`."""
    recipe: Recipe
    shard: Shard
    genre_counts: Annotated[list[Count], Len(len(GENRES), len(GENRES))]
    left_out: dict[str, Count]
    posters: dict[str, Count] = field(default_factory=dict)
    """How many were RESIZED, ODD, ...; older reports do not tell."""
    odd: list[Odd] = field(default_factory=list)
    problems: list[UnusablePoster]


def recipe_key(recipe: Recipe, split: str, films_sha256: str) -> str:
    """Identifies what the shard's bytes should be; a finished shard with the same key is left alone."""
    identity = json.dumps([asdict(recipe), split, films_sha256], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def report_path(shard: AnyPath) -> AnyPath:
    """The shard's report, written last: a shard without one is not finished."""
    return shard.with_suffix(".report.json")


def save_report(report: Report, shard: AnyPath) -> None:
    """Write a shard's report, whole or not at all."""
    with atomic_file(report_path(shard), "w") as file:
        json.dump(asdict(report), file, indent=1)


def read_report(shard: AnyPath, damaged_is_none: bool = False) -> Report | None:
    """A shard's report, None if it has none. Raises ValueError for one that is damaged, or of another shard.

    Where a damaged one counts as none, the shard is packed again; where a server does not answer, nothing is packed.
    """
    path = report_path(shard)
    try:
        written = read_bytes(path, LARGEST_REPORT)
    except FileNotFoundError:
        return None
    try:
        report = parse_json(Report, written, path, _REMEDY)
        if report.shard.file != shard.name:
            raise ValueError(f"{path}: tells of {report.shard.file}; {_REMEDY}")
        return report
    except ValueError:
        if damaged_is_none:
            return None
        raise


def shortened(report: Report) -> Report:
    """With one example of its odd and unreadable posters: with all of all shards, memory would grow with the films."""
    return replace(report, odd=report.odd[:1], problems=report.problems[:1])


def poster_lines(reports: Iterable[Report]) -> list[str]:
    """How many posters were odd or could not be read, with an example each; nothing if all were plain."""
    posters = LeftOut()
    for report in reports:
        for odd in report.odd[:1]:
            posters.add("odd posters were packed", f"film {odd['tmdb_id']}: {odd['odd']}", report.posters.get(ODD, 0))
        for problem in report.problems[:1]:
            example = f"film {problem['tmdb_id']}: {problem['problem']}"
            posters.add("posters could not be read", example, report.posters.get(UNREADABLE, 0))
    return [f"{line} (*.report.json name all)" for line in posters.lines()]
