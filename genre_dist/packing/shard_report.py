"""The recipe, which decides a shard's bytes, and the report, which marks a shard as finished."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, get_args

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
"""Results of packing a poster, beside `posters.UNTOUCHED`."""
NO_PICTURE, NO_FILE, NOT_OPENED = "unreadable poster", "missing poster file", "poster file that cannot be opened"
"""Reasons for leaving a film out because of its poster."""

LARGEST_REPORT = 1 << 30
"""Bytes of a report with a line for each odd poster of a large shard."""
_REMEDY = "run the same pack again, it makes the shard anew"
Int64 = Annotated[int, Interval(ge=-(2**63), lt=2**63)]


def check_image_options(fit: str, size: int, quality: int, shard_size: int) -> None:
    """Raise ValueError for an impossible option that every kind of recipe has."""
    if fit not in get_args(Fit):
        raise ValueError(f"--fit is {', '.join(get_args(Fit))}, not {fit}")
    if not 1 <= size <= 4096 or shard_size < 1:
        raise ValueError("--size goes from 1 to 4096, --shard_size is at least 1")
    if not 1 <= quality <= 100:
        raise ValueError(f"--quality goes from 1 to 100, not {quality}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options that, with its films, decide a shard's bytes. Raises ValueError for an impossible value."""

    require: tuple[str, ...] = ("poster", "overview")
    text: str = "overview"
    size: int = 256
    fit: Fit = "squash"
    quality: int = 90
    shard_size: int = 1000
    vectors_sha256: str = ""
    """Of the file of word vectors, '' without one; its words are kept in the vocabulary even if seen only once."""
    vocabulary_sha256: str = ""
    tokenizer_sha256: str = ""
    """Of the file of --tokenizer, '' for words."""

    def __post_init__(self) -> None:
        unknown = set(self.require) - {"poster", "overview"}
        if unknown:
            raise ValueError(f"--require knows poster and overview, not {', '.join(sorted(unknown))}")
        if self.text not in ("overview", "title", "both"):
            raise ValueError(f"--text is overview, title or both, not {self.text}")
        check_image_options(self.fit, self.size, self.quality, self.shard_size)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, see `written_recipe`."""
        return written_recipe(self)


def written_recipe(recipe: Any) -> dict[str, Any]:
    """A recipe as JSON has it: without the tokenizer of shards of words, whose keys and reports stay as they were."""
    options = asdict(recipe)
    if not recipe.tokenizer_sha256:
        del options["tokenizer_sha256"]
    return options


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
    """The inputs of a shard, and the results for its films."""

    key: str
    """Hash of the recipe and the films, see `recipe_key`."""
    recipe: Recipe
    shard: Shard
    genre_counts: Annotated[list[Count], Len(len(GENRES), len(GENRES))]
    left_out: dict[str, Count]
    posters: dict[str, Count] = field(default_factory=dict)
    """Kind (RESIZED, ODD, ...) -> posters; empty in older reports."""
    odd: list[Odd] = field(default_factory=list)
    problems: list[UnusablePoster]

    def ids_left_out(self) -> list[int]:
        """The films that were left out for their posters."""
        return [problem["tmdb_id"] for problem in self.problems] if "poster" in self.recipe.require else []


def recipe_key(recipe: Any, split: str, films_sha256: str) -> str:
    """A hash of the inputs that decide a shard's bytes; a finished shard with the same key is not packed again."""
    identity = json.dumps([recipe.to_dict(), split, films_sha256], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def report_path(shard: AnyPath) -> AnyPath:
    """The path of a shard's report, which is written last: a shard without one is not finished."""
    return shard.with_suffix(".report.json")


def save_report(report: Any, shard: AnyPath) -> None:
    """Write a shard's report atomically."""
    with atomic_file(report_path(shard), "w") as file:
        json.dump(asdict(report) | {"recipe": report.recipe.to_dict()}, file, indent=1)


def read_report(shard: AnyPath, kind: Any = Report, damaged_is_none: bool = False) -> Any:
    """A shard's report, of type `kind`, None if it has none. Raises ValueError for a damaged one, or another shard's.

    With `damaged_is_none` a damaged report counts as none, so the shard is packed again; server errors always raise.
    """
    path = report_path(shard)
    try:
        written = read_bytes(path, LARGEST_REPORT)
    except FileNotFoundError:
        return None
    try:
        report = parse_json(kind, written, path, _REMEDY)
        if report.shard.file != shard.name:
            raise ValueError(f"{path}: tells of {report.shard.file}; {_REMEDY}")
        return report
    except ValueError:
        if damaged_is_none:
            return None
        raise


def shortened(report: Any) -> Any:
    """A report with one example each of odd and unreadable posters, so that memory does not grow with the films."""
    return replace(report, odd=report.odd[:1], problems=report.problems[:1])


def poster_lines(reports: Iterable[Report]) -> list[str]:
    """Lines that count the odd and the unreadable posters, with an example each."""
    posters = LeftOut()
    for report in reports:
        for odd in report.odd[:1]:
            posters.add("odd posters were packed", f"film {odd['tmdb_id']}: {odd['odd']}", report.posters.get(ODD, 0))
        for problem in report.problems[:1]:
            example = f"film {problem['tmdb_id']}: {problem['problem']}"
            posters.add("posters could not be read", example, report.posters.get(UNREADABLE, 0))
    return [f"{line} (*.report.json name all)" for line in posters.lines()]
