"""A few samples of an evaluated split for W&B and TensorBoard: image, text, labels, prediction."""

import numpy as np

from genre_dist.metrics.choosing import likeliest, probabilities
from genre_dist.packing.tokenizer import tokenizer_of
from genre_dist.printable import printable
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.training.evaluation import Evaluation
from genre_dist.training.views import Example

LIKELY = 0.2
"""Labels at least this probable are shown; where a sample has exactly one, the likeliest always."""


def example_films(evaluation: Evaluation, reader: ShardReader, count: int) -> list[Example]:
    """The first samples of the split: always the same ones, and a random draw as they are stored in hash order."""
    sizes = reader.index.sizes
    rows = Rows(np.repeat(np.arange(len(sizes)), sizes)[:count], np.concatenate([np.arange(n) for n in sizes])[:count])
    batch = reader.read(rows)
    names = [genre.name for genre in reader.manifest.genres]
    tokenizer = None if batch.tokens is None else tokenizer_of(reader.manifest.folder, reader.manifest.text)
    choose, logits = evaluation.declared.labels.choose, evaluation.logits[:count]
    probable = probabilities(logits, choose)  # [n, labels]
    shown = (probable >= LIKELY) | (likeliest(logits) & (choose == "one"))
    films = []
    for n, film in enumerate(batch.ids.tolist()):
        assert film == evaluation.ids[n]
        likely = [g for g in np.argsort(-probable[n]) if shown[n, g]]
        overview = None
        if tokenizer is not None and batch.tokens is not None and batch.lengths is not None:
            overview = tokenizer.text(batch.tokens[n, : batch.lengths[n]])
        films.append(
            Example(
                id=printable(batch.samples[n]) if batch.samples else film,
                poster=None if batch.images is None else batch.images[n].copy(),
                overview=overview,
                genres=", ".join(names[g] for g in np.flatnonzero(evaluation.labels[n])),
                predicted=", ".join(f"{names[g]} {probable[n, g]:.0%}" for g in likely),
            )
        )
    return films
