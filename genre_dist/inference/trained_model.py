"""Loading a trained run from its folder."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from genre_dist.config import Config
from genre_dist.config.continuing import changes, describe, trained_with
from genre_dist.config.files import load_config
from genre_dist.config.run import CONFIG, WEIGHTS
from genre_dist.config.trust import refuse_foreign_code
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.weights import load_state
from genre_dist.packing.tokenizer import Tokenizer
from genre_dist.schema import TMDB, Schema
from genre_dist.training.model_files import read_metadata, read_tokenizer, read_weights, with_own_architecture


class Run(NamedTuple):
    """A trained model with all that inference needs; no shards are read."""

    config: Config
    model: GenreClassifier
    genres: list[str]
    metadata: dict[str, Any]
    """The content of model.json."""
    tokenizer: Tokenizer
    declared: Schema = TMDB
    """What is declared of the samples and labels that it was trained on."""


def load_run(folder: Path, device: torch.device, trust_code: bool = False) -> Run:
    """Read a finished run, its model in eval mode on the device.

    Raises ValueError if the folder is no run, the run is unfinished, or its files are damaged or belong to different
    runs; and, without `trust_code`, if its configuration names code that was never trained with here.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder}: not a run (it has no config.yaml); train one with python -m genre_dist.train")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder}: the run has no {WEIGHTS} yet; train it to its end (the same command continues it)")
    config = load_config(file)
    if not trust_code:
        refuse_foreign_code(config, file)
    facts = read_metadata(folder)
    if changed := changes(facts.settings, trained_with(config), "fixed"):
        raise ValueError(f"{file}: the weights were not trained with {describe(changed)}; put that back")
    tokenizer, weights = read_tokenizer(folder, facts), read_weights(folder, facts)
    embedding = next((value for name, value in weights.items() if name.endswith(".embedding.weight")), None)
    try:
        model = GenreClassifier(
            with_own_architecture(config.model, folder),
            len(facts.genres),
            config.data.image_size,
            tokenizer.size,
            None if embedding is None else embedding.numpy(),
            load_weights=False,
            schema=facts.declared,
        )
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"{file}: its model cannot be made here: {str(error).partition(chr(10))[0]}") from None
    load_state(model, weights, str(folder / WEIGHTS), "the run's config.yaml")
    genres = [genre.name for genre in facts.genres]
    return Run(config, model.to(device).eval(), genres, facts.to_dict(), tokenizer, facts.declared)
