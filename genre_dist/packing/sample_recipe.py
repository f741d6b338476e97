"""The recipe and the report of shards of a declared data set; see `shard_report.py` for what both are."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict

from genre_dist.catalogue.left_out import LeftOut
from genre_dist.packing.posters import Fit
from genre_dist.packing.shard_report import ODD, UNREADABLE, check_image_options, written_recipe
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import Schema
from genre_dist.stream.sample_manifest import SampleShard
from genre_dist.validation import Count


@dataclass(frozen=True, kw_only=True)
class SampleRecipe:
    """The options that, with its samples, decide a shard's bytes. Raises ValueError for an impossible value."""

    schema_sha256: str
    require: tuple[str, ...] = ()
    """Fields that every packed sample has."""
    size: int = 256
    fit: Fit = "squash"
    quality: int = 90
    shard_size: int = 1000
    vectors_sha256: str = ""
    vocabulary_sha256: str = ""
    tokenizer_sha256: str = ""
    """Of the file of --tokenizer, '' for words."""

    def __post_init__(self) -> None:
        check_image_options(self.fit, self.size, self.quality, self.shard_size)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, see `shard_report.written_recipe`."""
        return written_recipe(self)


def recipe_of(schema: Schema, **options: object) -> SampleRecipe:
    """The recipe of a data set. Raises ValueError for an unknown field, and as SampleRecipe does."""
    written = json.dumps(schema.to_dict(), sort_keys=True).encode()
    recipe = SampleRecipe(schema_sha256=hashlib.sha256(written).hexdigest(), **options)  # type: ignore[arg-type]
    try:
        schema.bits(recipe.require)
    except ValueError as error:
        raise ValueError(f"--require: {error}") from None
    return recipe


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
class SampleShardReport:
    """The inputs of a shard, and the results for its samples."""

    key: str
    """Hash of the recipe and the samples."""
    recipe: SampleRecipe
    shard: SampleShard
    label_counts: list[Count]
    left_out: dict[str, Count]
    images: dict[str, Count]
    """Kind (RESIZED, ODD, ...) -> images."""
    odd: list[OddImage]
    problems: list[UnusableImage]

    def ids_left_out(self) -> list[int]:
        """The numbers of the samples that were left out for their images."""
        return [number_of_id(problem["id"]) for problem in self.problems if problem["left_out"]]


def image_lines(reports: Iterable[SampleShardReport]) -> list[str]:
    """Lines that count the odd and the unreadable images, with an example each."""
    images = LeftOut()
    for report in reports:
        for odd in report.odd[:1]:
            images.add("odd images were packed", f"{odd['id']}: {odd['odd']}", report.images.get(ODD, 0))
        for problem in report.problems[:1]:
            example = f"{problem['id']}: {problem['problem']}"
            images.add("images could not be read", example, report.images.get(UNREADABLE, 0))
    return [f"{line} (*.report.json name all)" for line in images.lines()]
