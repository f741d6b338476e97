"""What a run with a pretrained text encoder reads, checks and tells before its first step, or when it goes on."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from genre_dist.config import Config
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.packing.tokenizer import token_name
from genre_dist.pretrained import ARCHITECTURE, TOKENIZER, find_pretrained
from genre_dist.storage import sha256_of
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import Reader
from genre_dist.training.checkpoint import is_whole
from genre_dist.training.model_files import METADATA, with_own_architecture


def has_steps(config: Config) -> bool:
    """Whether the run's folder holds the weights of some steps, so that it goes on or is refused: either way weights
    to start from, which may be gone, are not read."""
    run = Path(config.run.dir)
    saved = [path for path in (run / "checkpoints").glob("step-*") if path.suffix != ".partial"]
    return not config.run.overwrite and (any(map(is_whole, saved)) or (run / METADATA).is_file())


def going_on(config: Config) -> Config:
    """For a run with steps, the same with the text encoder's architecture from its folder."""
    if not has_steps(config):
        return config
    with suppress(ValueError):  # a damaged file is written anew from the encoder's own, if that is still there
        return replace(config, model=with_own_architecture(config.model, Path(config.run.dir)))
    return config


def check_tokenizer(config: Config, manifest: Manifest) -> None:
    """Raise ValueError if a text encoder starts from its own weights and the shards have not its tokenizer's ids.

    An encoder without a tokenizer.json takes the ids of any tokenizer, but not those of words.
    """
    text, name = config.model.text, config.model.text.pretrained
    if name is None or text.weights is not None:
        return
    own = find_pretrained(name, ARCHITECTURE, "model.text.arch").with_name(TOKENIZER)
    if "tokenizer" in manifest.text:
        if not own.is_file() or sha256_of(own) == manifest.text["vocabulary_sha256"]:
            return
        packed = "another tokenizer than this encoder's"
    else:
        packed = f"{token_name(manifest.text)}, which this encoder cannot read"
    raise ValueError(
        f"model.text.arch={text.arch}: {manifest.folder} was packed with {packed}; pack into another folder with "
        f"--tokenizer {name}, or set model.text.weights none"
    )


def text_lines(config: Config, encoders: Mapping[str, PretrainedText], reader: Reader) -> list[str]:
    """Lines about pretrained text encoders, by name: what they start from, and how many texts they must cut."""
    text, lines = config.model.text, list[str]()
    for part, encoder in encoders.items():
        start = text.weights_file or encoder.weights_used
        lines.append(f"{part} encoder {text.arch}, {len(encoder.layers())} layers, starting weights: {start}")
    most = next((encoder.positions for encoder in encoders.values()), None)  # all are of one architecture
    if most is not None and most < config.data.max_tokens and (cut := _longer(reader, most)):
        lines.append(
            f"{cut:,} of {reader.index.samples:,} texts are longer than the {most} positions of the text encoder and "
            f"are cut there; data.max_tokens {most} cuts them while they are read"
        )
    return lines


def _longer(reader: Reader, most: int) -> int:
    """How many texts of a split have more tokens than this, counted in the index."""
    count = 0
    for shard, samples in enumerate(reader.index.sizes):
        rows = Rows(np.full(samples, shard), np.arange(samples))
        count += int((reader.index.records(rows)["tokens"] > most).sum())
    return count
