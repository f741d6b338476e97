"""A data set whose samples have exactly one label each, in words of its own: articles with a topic."""

import pytest

from genre_dist.genres import GENRE_NAMES
from genre_dist.schema import TMDB, Labels, Schema
from genre_dist.stream.manifest import Manifest

ARTICLES = Schema(
    id="key",
    split_by="key",
    labels=Labels(column="topic", classes=GENRE_NAMES, choose="one"),
    fields=TMDB.fields,
    sample="article",
    label="topic",
)


def declare(schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every manifest declare this of its samples."""
    monkeypatch.setattr(Manifest, "declared", property(lambda _: schema))
