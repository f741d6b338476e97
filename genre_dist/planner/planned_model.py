"""The model of a configuration on the meta device: sizes and traces, without weights, data or RAM."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from genre_dist.config import Config
from genre_dist.genres import GENRES
from genre_dist.models.classifier import GenreClassifier, count_parameters
from genre_dist.models.pretrained_text import PretrainedText, vocabulary_size
from genre_dist.models.recompute import recompute_activations, recompute_layers
from genre_dist.parallel.sharded import units
from genre_dist.planner.memory import Checkpointing, Sizes
from genre_dist.planner.sizes import TYPICAL_TOKENS
from genre_dist.planner.trace import Trace, trace_step
from genre_dist.schema import TMDB, Schema
from genre_dist.stream.manifest import load_manifest

ASSUMED_WORDS, ASSUMED_DIM = 30_000, 300
"""Vocabulary if the shards cannot be read: about the study's, with GloVe's width."""


class Vocabulary(NamedTuple):
    """The sizes that the model takes from the shards."""

    words: int
    dim: int | None
    """Width of the word vectors; None if there are none and the embedding is trained."""
    genres: int
    source: str
    declared: Schema = TMDB
    """The fields."""


class PlannedModel(NamedTuple):
    """Sizes and traces of a model."""

    vocabulary: Vocabulary
    parameters: dict[str, tuple[int, int]]
    """Numbers of trained and frozen parameters of each part."""
    sizes: Sizes
    traces: dict[Checkpointing, Trace]
    tokens: int
    """Length of the texts in the traces."""


def plan_model(
    config: Config, checkpointing: tuple[Checkpointing, ...], tokens: int | None = None, on_gpu: bool = True
) -> PlannedModel:
    """Sizes of a configuration's model and a trace for each kind of activation checkpointing.

    `tokens` is the length of the texts, a typical overview's by default. Raises ValueError as building the model does.
    """
    vocabulary = find_vocabulary(config)
    tokens = min(tokens or TYPICAL_TOKENS, config.data.max_tokens)
    model = meta_model(config, vocabulary, on_gpu)
    sizes = model_sizes(model)
    traces = {}
    for kind in checkpointing:
        traced = meta_model(config, vocabulary, on_gpu)  # tracing leaves hooks behind
        if kind != "none" and not _recomputes(traced, kind):
            continue
        traces[kind] = trace_step(traced, config.data.image_size, tokens)
    return PlannedModel(vocabulary, count_parameters(model), sizes, traces, tokens)


def find_vocabulary(config: Config) -> Vocabulary:
    """The vocabulary of the shards if they can be read, else an assumption that says so.

    Raises ValueError for a pretrained text encoder that cannot be had.
    """
    try:
        manifest = load_manifest(config.data.shards)
    except (ValueError, OSError):
        source = "assumed: no shards in reach"
        if config.model.text.pretrained is not None:
            return Vocabulary(vocabulary_size(config.model.text), None, len(GENRES), source)
        return Vocabulary(ASSUMED_WORDS, ASSUMED_DIM, len(GENRES), source)
    text = manifest.text
    dim = text["dim"] if text["vectors"] is not None else None
    return Vocabulary(int(text["words"]), dim, len(manifest.genres), str(manifest.folder), manifest.declared)


def meta_model(config: Config, vocabulary: Vocabulary, on_gpu: bool) -> GenreClassifier:
    """The model on the meta device, with the heads' kernel of a GPU or a CPU."""
    heads = config.model.heads
    if heads.kernel == "auto":
        heads = replace(heads, kernel="batched" if on_gpu else "separate")
    vectors = None
    if vocabulary.dim is not None:  # only the shape counts: a view of one number
        vectors = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (vocabulary.words, vocabulary.dim), (0, 0))
    with torch.device("meta"):
        return GenreClassifier(
            replace(config.model, heads=heads),
            vocabulary.genres,
            config.data.image_size,
            vocabulary.words,
            vectors,
            load_weights=False,
            schema=vocabulary.declared,
        )


def model_sizes(model: GenreClassifier) -> Sizes:
    """Bytes of weights and buffers, and of the units that FSDP and ZeRO-3 gather."""
    trained = [p for p in model.parameters() if p.requires_grad]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    # the trace has the copies of stacked heads
    stacked = {id(p) for p in model.heads.parameters()} if model.heads.kernel == "batched" else set()
    # recurrent layers compute in fp32
    recurrent = {id(p) for m in model.modules() if isinstance(m, nn.RNNBase) for p in m.parameters()}
    copied = [p for p in trained if p.ndim > 1 and id(p) not in embeddings | stacked | recurrent]
    gathered, counted = [], set()  # parameters of a unit's inner units are theirs alone
    for unit in units(model):
        own = [p for p in unit.parameters() if id(p) not in counted]
        counted |= {id(p) for p in own}
        gathered.append(sum(p.nbytes for p in own))
    return Sizes(
        trained=sum(p.nbytes for p in trained),
        frozen=sum(p.nbytes for p in model.parameters() if not p.requires_grad),
        buffers=sum(b.nbytes for b in model.buffers()),
        copied=sum(p.nbytes for p in copied),
        units=tuple(sorted(gathered, reverse=True)),
    )


def _recomputes(model: GenreClassifier, kind: Checkpointing) -> bool:
    """Make a model recompute its activations; False without a trained encoder that supports it."""
    transformers = [encoder for encoder in model.text_encoders.values() if isinstance(encoder, PretrainedText)]
    has_layers = any(not encoder.frozen for encoder in transformers)
    for transformer in transformers:
        recompute_layers(transformer, kind)
    trained = [encoder.network for encoder in model.image_encoders.values() if not encoder.frozen]
    try:
        for network in trained:
            recompute_activations(network, kind)
    except ValueError:
        return False
    return has_layers or bool(trained)
