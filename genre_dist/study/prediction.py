"""One film: its genres ranked."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from genre_dist.prepare.posters import load_rgb, square
from genre_dist.prepare.vocabulary import encode, tokenise
from genre_dist.stream.images import whole
from genre_dist.stream.sample import pad
from genre_dist.study.run import Run


class Prediction(NamedTuple):
    """A genre and how probable the model finds it."""

    genre: str
    probability: float


def predict(run: Run, poster: Path | None, overview: str | None, device: torch.device) -> list[Prediction]:
    """Genres by falling probability.

    Raises ValueError if an input the model was trained on is missing, or the poster is no image.
    """
    uses = run.config.model
    needed = {"--poster": (uses.uses_poster, poster), "--overview": (uses.uses_text, overview)}
    for option, (used, given) in needed.items():
        if used and given is None:
            raise ValueError(f"this model was trained on {' and '.join(uses.members)}; pass {option} as well")
    images = tokens = lengths = None
    if uses.uses_poster and poster is not None:
        images = whole(torch.from_numpy(_pixels(run, poster)[None]).to(device), run.config.data.image_size)
    if uses.uses_text and overview is not None:
        text, length = pad([encode(tokenise(overview), run.words)[: run.config.data.max_tokens]])
        tokens, lengths = torch.from_numpy(text).long().to(device), torch.from_numpy(length)
    with torch.inference_mode():
        probabilities = torch.sigmoid(run.model(images, tokens, lengths))[0].tolist()
    ranked = sorted(zip(run.genres, probabilities, strict=True), key=lambda pair: -pair[1])
    return [Prediction(genre, probability) for genre, probability in ranked]


def _pixels(run: Run, poster: Path) -> np.ndarray:
    """The poster in the shape the shards had, uint8 [size, size, 3]."""
    if not poster.is_file():
        raise ValueError(f"{poster}: no such poster")
    try:
        pixels, _ = load_rgb(poster.read_bytes())
    except ValueError as error:
        raise ValueError(f"{poster}: {error}") from None
    return square(pixels, run.facts["image"]["size"], run.facts["image"]["fit"])
