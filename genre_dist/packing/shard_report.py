"""The report of a shard, which is written last and marks it as finished."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, TypeVar, cast

from annotated_types import Interval, Len
from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.genres import GENRES
from genre_dist.packing.recipe import Recipe
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import TMDB, Schema
from genre_dist.storage import AnyPath, read_bytes
from genre_dist.stream.manifest import SampleShard, Shard
from genre_dist.validation import Count, parse_json

RESIZED, ODD, UNREADABLE, NO_IMAGE = "resized", "odd", "unreadable", "none"
"""Results of packing an image, beside `posters.UNTOUCHED`."""
NO_PICTURE, NO_FILE, NOT_OPENED = "unreadable {}", "missing {} file", "{} file that cannot be opened"
"""Reasons for leaving a sample out because of its image, whose field they name."""

LARGEST_REPORT = 1 << 30
"""Bytes of a report with a line for each odd image of a large shard."""
_REMEDY = "run the same pack again, it makes the shard anew"
Int64 = Annotated[int, Interval(ge=-(2**63), lt=2**63)]


class ImageNotes:
    """What became of the images of a shard."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        """RESIZED, ODD, ... -> images."""
        self.left_out: Counter[str] = Counter()
        """Reason -> samples that were left out for an image."""
        self.odd: list[tuple[Any, str]] = []
        """Id of a sample, and what is unusual about an image of it that was packed."""
        self.problems: list[tuple[Any, str, bool]] = []
        """Id of a sample, why an image of it could not be packed, and whether the sample was left out for it."""


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
    """The inputs of a shard of films, and the results for them."""

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

    @staticmethod
    def of(counts: list[int], notes: ImageNotes, **inputs: Any) -> "Report":
        """The report of a shard, given its films of each genre and the notes on their posters."""
        return Report(
            **inputs,
            genre_counts=counts,
            posters=dict(sorted(notes.kinds.items())),
            odd=[{"tmdb_id": film, "odd": note} for film, note in notes.odd],
            problems=[{"tmdb_id": film, "problem": problem} for film, problem, _ in notes.problems],
        )

    @property
    def label_counts(self) -> list[int]:
        return self.genre_counts

    def ids_left_out(self) -> list[int]:
        """The films that were left out for their posters."""
        return [problem["tmdb_id"] for problem in self.problems] if "poster" in self.recipe.require else []


class OddImage(TypedDict):
    """An image that was packed though it is unusual."""

    id: str
    odd: str


class UnusableImage(TypedDict):
    """An image that could not be packed."""

    id: str
    problem: str
    left_out: bool
    """Whether its sample was left out for it."""


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """The inputs of a shard of a declared data set, and the results for its samples."""

    key: str
    recipe: Recipe
    shard: SampleShard
    label_counts: list[Count]
    left_out: dict[str, Count]
    images: dict[str, Count]
    odd: list[OddImage]
    problems: list[UnusableImage]

    @staticmethod
    def of(counts: list[int], notes: ImageNotes, **inputs: Any) -> "SampleReport":
        """The report of a shard, as for films."""
        return SampleReport(
            **inputs,
            label_counts=counts,
            images=dict(sorted(notes.kinds.items())),
            odd=[{"id": id, "odd": note} for id, note in notes.odd],
            problems=[{"id": id, "problem": problem, "left_out": left} for id, problem, left in notes.problems],
        )

    def ids_left_out(self) -> list[int]:
        """The numbers of the samples that were left out for their images."""
        return [number_of_id(problem["id"]) for problem in self.problems if problem["left_out"]]


AnyReport = Report | SampleReport
_Report = TypeVar("_Report", bound=AnyReport)


def report_kind(schema: Schema) -> type[AnyReport]:
    """The type of the reports of a data set's shards."""
    return Report if schema == TMDB else SampleReport


def report_path(shard: AnyPath) -> AnyPath:
    """The path of a shard's report, which is written last: a shard without one is not finished."""
    return shard.with_suffix(".report.json")


def save_report(report: AnyReport, shard: AnyPath) -> None:
    """Write a shard's report atomically."""
    with atomic_file(report_path(shard), "w") as file:
        json.dump(asdict(report) | {"recipe": report.recipe.to_dict()}, file, indent=1)


def read_report(shard: AnyPath, kind: type[AnyReport] = Report, damaged_is_none: bool = False) -> Any:
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
            raise ValueError(f"{path}: describes {report.shard.file}; {_REMEDY}")
        return report
    except ValueError:
        if damaged_is_none:
            return None
        raise


def shortened(report: _Report) -> _Report:
    """A report with one example each of odd and unreadable images, so that memory does not grow with the samples."""
    return replace(cast(Any, report), odd=report.odd[:1], problems=report.problems[:1])


def image_lines(reports: Iterable[AnyReport]) -> list[str]:
    """Lines that count the odd and the unreadable images, with an example each."""
    images = LeftOut()
    for report in reports:
        if isinstance(report, Report):
            what, example, kinds = "posters", "film {tmdb_id}: ", report.posters
        else:
            what, example, kinds = "images", "{id}: ", report.images
        for odd in report.odd[:1]:
            images.add(f"odd {what} were packed", example.format(**odd) + odd["odd"], kinds.get(ODD, 0))
        for problem in report.problems[:1]:
            cause = example.format(**problem) + problem["problem"]
            images.add(f"{what} could not be read", cause, kinds.get(UNREADABLE, 0))
    return [f"{line} (*.report.json name all)" for line in images.lines()]
