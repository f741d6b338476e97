"""A data set whose samples have exactly one label each, in words of its own: articles with a topic."""

import numpy as np
import pytest
from numpy.typing import NDArray

from genre_dist.genres import GENRE_NAMES
from genre_dist.schema import TMDB, Labels, Schema
from genre_dist.stream.manifest import FilmManifest

ARTICLES = Schema(
    id="key",
    split_by="key",
    labels=Labels(column="topic", classes=GENRE_NAMES, choose="one"),
    fields=TMDB.fields,
    sample="article",
    label="topic",
)


def drawn_topics(articles: int, seed: int = 0) -> NDArray[np.bool_]:
    """Labels of invented articles, exactly one of 19 topics each."""
    return np.eye(len(GENRE_NAMES), dtype=bool)[np.random.default_rng(seed).integers(0, len(GENRE_NAMES), articles)]


def declare(schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every manifest declare this of its samples."""
    monkeypatch.setattr(FilmManifest, "declared", property(lambda _: schema))
