"""Samples of a declared data set to pack, and the lines of their shards; see `layout.py`."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genre_dist.catalogue.samples import read_samples
from genre_dist.packing.layout import Candidate, Chosen, ExistingShards, choose_among, lay_out_lines
from genre_dist.packing.sample_recipe import SampleRecipe
from genre_dist.packing.shard import Job
from genre_dist.packing.splits import split_of
from genre_dist.sample_ids import LONGEST_KEY, member_key, number_of_id
from genre_dist.schema import Field, Schema
from genre_dist.storage import AnyPath
from genre_dist.stream.sample_manifest import Moments

LONGEST_NAME = 100
"""Bytes of a member's name in a tar's header."""


class RunningMoments:
    """Mean and spread of a field's numbers, taken sample by sample (Welford); missing ones are passed over."""

    def __init__(self, count: int) -> None:
        self._seen, self._mean, self._squares = (np.zeros(count) for _ in range(3))

    def add(self, numbers: list[float]) -> None:
        values = np.array(numbers)
        there = ~np.isnan(values)
        self._seen += there
        away = np.where(there, values - self._mean, 0.0)
        self._mean += away / np.maximum(self._seen, 1)
        self._squares += away * np.where(there, values - self._mean, 0.0)

    @property
    def sums(self) -> list[list[float]]:
        """Count, mean and squared distances from it of each number."""
        return [part.tolist() for part in (self._seen, self._mean, self._squares)]

    def merge(self, sums: list[list[float]]) -> None:
        """Add the `sums` of other samples (Chan et al.)."""
        seen, mean, squares = map(np.array, sums)
        total, away = np.maximum(self._seen + seen, 1), mean - self._mean
        self._squares += squares + away**2 * self._seen * seen / total
        self._mean += away * seen / total
        self._seen += seen

    def result(self) -> Moments:
        std = np.sqrt(self._squares / np.maximum(self._seen, 1))
        return {"mean": self._mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}


def has_field(row: dict[str, Any], field: Field) -> bool:
    """Whether a row of the catalogue has a field: a text that is not blank, one number, an image that was taken."""
    if field.kind == "image":
        return bool(row[f"{field.name}:status"] == "ok")
    if field.kind == "numbers":
        return not all(map(math.isnan, row[field.name]))
    return bool((row[field.name] or "").strip())


def choose_samples(schema: Schema, catalogue: AnyPath, recipe: SampleRecipe, existing: ExistingShards) -> Chosen:
    """Read the catalogue once: the samples to pack, the shard of each, words and moments of the train split.

    Raises ValueError as `layout.choose` does, and for an id that is too long for a tar.
    """
    fields = [field for field in schema.fields if field.kind == "numbers"]
    moments = {field.name: RunningMoments(len(field.columns)) for field in fields}
    chosen = choose_among(
        _candidates(schema, catalogue, recipe, existing, moments), catalogue, recipe, existing, "sample"
    )
    if existing.reports:
        return chosen._replace(moments=existing.moments)  # as the vocabulary, they never move
    return chosen._replace(moments={name: running.result() for name, running in moments.items()})


def _candidates(
    schema: Schema,
    catalogue: AnyPath,
    recipe: SampleRecipe,
    existing: ExistingShards,
    moments: dict[str, RunningMoments],
) -> Iterator[Candidate]:
    longest = min(LONGEST_KEY, LONGEST_NAME - 1 - max(len(field.extension) for field in schema.fields))
    texts = [field.name for field in schema.fields if field.kind == "text"]
    for row in read_samples(catalogue, schema):
        id = row["id"]
        try:
            member_key(id, longest)
        except ValueError as error:
            raise ValueError(f"{catalogue}: {error}") from None
        number, split_id = number_of_id(id), number_of_id(row["split_by"])
        has = {field.name for field in schema.fields if has_field(row, field)}
        lacking = [name for name in recipe.require if name not in has]
        reason = f"no {lacking[0]}" if lacking else None if has else "none of the fields"
        if reason is None and not existing.reports and split_of(split_id) == "train":
            for name, running in moments.items():
                running.add(row[name])
        yield Candidate(number, split_id, reason, " ".join(row[name] or "" for name in texts))


def lay_out_samples(
    schema: Schema,
    make_job: Callable[..., Job],
    catalogue: AnyPath,
    out: AnyPath,
    recipe: SampleRecipe,
    chosen: Chosen,
    work: Path,
    words: Path,
    part: tuple[int, int],
) -> list[Job]:
    """Write the file of every shard of a part, and make the job of each, as `layout.lay_out` does."""
    job = partial(make_job, out=out, catalogue=catalogue, words=words, recipe=recipe, schema=schema)
    lines = ((number_of_id(row["id"]), partial(_line, row, schema)) for row in read_samples(catalogue, schema))
    return lay_out_lines(lines, chosen, work, part, job)


def _line(row: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """What packing needs of a sample: its fields have their text, numbers, or the checksum of an image; None if absent.

    (A checksum, so that a shard is packed anew if an image changes.)
    """
    values: dict[str, Any] = {}
    for field in schema.fields:
        value = row[f"{field.name}:sha256"] if field.kind == "image" else row[field.name]
        values[field.name] = value if has_field(row, field) else None
    return {"id": row["id"], "labels": row["labels"] or [], "fields": values}
