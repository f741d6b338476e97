"""A trained run read back from its folder."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from genre_dist.config import Config
from genre_dist.configfile import load_config
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.poster import load_state
from genre_dist.prepare.vocabulary import load_words
from genre_dist.training.export import FACTS, WEIGHTS, WORDS


class Run(NamedTuple):
    """A model with what is needed to use it without its shards."""

    config: Config
    model: GenreClassifier
    genres: list[str]
    facts: dict[str, Any]
    words: dict[str, int]


def load_run(folder: Path, device: torch.device) -> Run:
    """Read a finished run, its model in eval mode on the device.

    Raises ValueError if the folder is no run, or one that has not been trained to its end.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: not a run (it has no config.yaml); train one with python -m genre_dist.train")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder}: the run has no {WEIGHTS} yet; train it to its end (the same command continues it)")
    config = load_config(folder / "config.yaml")
    facts = json.loads((folder / FACTS).read_text())
    words = load_words(folder / WORDS)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged ({error}); train on, or copy it again") from None
    embedding = weights.get("text.embedding.weight")
    model = GenreClassifier(
        config.model,
        len(facts["genres"]),
        config.data.image_size,
        len(words),
        None if embedding is None else embedding.numpy(),
        load_weights=False,
    )
    load_state(model, weights, str(folder / WEIGHTS), "the run's config.yaml")
    return Run(config, model.to(device).eval(), [genre["name"] for genre in facts["genres"]], facts, words)
