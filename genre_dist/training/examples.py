"""A few films of an evaluated split for W&B and TensorBoard: poster, text, genres, prediction."""

import numpy as np

from genre_dist.packing.tokenizer import tokenizer_of
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.training.evaluation import Evaluation
from genre_dist.training.views import Example

LIKELY = 0.2
"""Genres at least this probable are shown."""


def example_films(evaluation: Evaluation, reader: ShardReader, count: int) -> list[Example]:
    """The first films of the split: always the same ones, and a random draw as films are stored in hash order."""
    sizes = reader.index.sizes
    rows = Rows(np.repeat(np.arange(len(sizes)), sizes)[:count], np.concatenate([np.arange(n) for n in sizes])[:count])
    batch = reader.read(rows)
    names = [genre.name for genre in reader.manifest.genres]
    tokenizer = None if batch.tokens is None else tokenizer_of(reader.manifest.folder, reader.manifest.text)
    probabilities = 1 / (1 + np.exp(-evaluation.logits[:count].astype(np.float64)))  # [n, genres]
    films = []
    for n, film in enumerate(batch.ids.tolist()):
        assert film == evaluation.ids[n]
        likely = [g for g in np.argsort(-probabilities[n]) if probabilities[n, g] >= LIKELY]
        overview = None
        if tokenizer is not None and batch.tokens is not None and batch.lengths is not None:
            overview = tokenizer.text(batch.tokens[n, : batch.lengths[n]])
        films.append(
            Example(
                id=film,
                poster=None if batch.images is None else batch.images[n].copy(),
                overview=overview,
                genres=", ".join(names[g] for g in np.flatnonzero(evaluation.labels[n])),
                predicted=", ".join(f"{names[g]} {probabilities[n, g]:.0%}" for g in likely),
            )
        )
    return films
