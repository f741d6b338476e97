"""The plan of a packing, and the manifest of its shards, which is written last."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from genre_dist.genres import GENRES
from genre_dist.packing.layout import Chosen, ExistingShards
from genre_dist.packing.recipe import Recipe
from genre_dist.packing.shard import Job
from genre_dist.packing.shard_report import AnyReport, image_lines
from genre_dist.packing.tokenizer import WORDS, TokenizerFile
from genre_dist.packing.vectors import WordVectors
from genre_dist.pretrained import TOKENIZER
from genre_dist.printable import printable
from genre_dist.schema import TMDB, Schema
from genre_dist.splits import rule_of
from genre_dist.storage import AnyPath
from genre_dist.stream.manifest import SPLITS, FilmManifest, Manifest, SampleManifest, Text, save_manifest
from genre_dist.stream.words import load_vectors, vectors_sha256

VECTORS = "vectors.npy"


class Packing(NamedTuple):
    """The plan for a folder: its recipe, vocabulary and shards to pack."""

    schema: Schema
    out: AnyPath
    recipe: Recipe
    existing: ExistingShards
    words: list[str]
    """Empty with a tokenizer."""
    tokenizer: TokenizerFile | None
    """What --tokenizer names; None for words."""
    vectors: WordVectors | None
    """Vectors of the words from --vectors; None without that file, or if vectors.npy exists already."""
    dim: int | None
    """Width of the vectors; None without any."""
    chosen: Chosen
    """Its counts of words are cleared."""
    jobs: list[Job]


def write_manifest(packing: Packing, reports: list[AnyReport]) -> Manifest:
    """Write the manifest of the shards of these reports, and print what is odd about their images."""
    schema, recipe = packing.schema, packing.recipe
    counts = {split: np.zeros(len(schema.labels.classes), int) for split in SPLITS}
    left_out = Counter(packing.chosen.left_out)
    for report in reports:
        counts[report.shard.split] += report.label_counts
        left_out.update(report.left_out)
    label_counts = {split: count.tolist() for split, count in counts.items()}
    source, sha256 = recipe.text or text_fields(schema), recipe.vocabulary_sha256
    contents: dict[str, Any] = {
        "folder": packing.out,
        "image": {"size": recipe.size, "fit": recipe.fit, "quality": recipe.quality},
        "text": text_entry(packing.out, source, packing.words, sha256, packing.tokenizer, packing.dim),
        "require": recipe.require,
        "split_rule": rule_of(schema),
        "left_out": dict(sorted(left_out.items())),
        "shards": tuple(report.shard for report in reports),
    }
    manifest: FilmManifest | SampleManifest
    if schema == TMDB:
        manifest = FilmManifest(**contents, genres=GENRES, genre_counts=label_counts)
    else:
        numbers = dict(packing.chosen.moments)
        manifest = SampleManifest(**contents, declared=schema, numbers=numbers, label_counts=label_counts)
    save_manifest(manifest)
    for line in image_lines(reports):
        print(printable(line))
    return manifest


def text_entry(
    out: AnyPath, source: str, words: list[str], sha256: str, tokenizer: TokenizerFile | None, dim: int | None
) -> Text:
    """The manifest's entry on texts, whose vocabulary or tokenizer has this checksum; vectors are in `out` already."""
    text = Text(
        source=source,
        vocabulary=token_file(tokenizer),
        words=len(words),
        vocabulary_sha256=sha256,
        vectors=VECTORS if dim else None,
        dim=dim,
    )
    if (vectors := load_vectors(out, text)) is not None:
        text["vectors_sha256"] = vectors_sha256(vectors)
    if tokenizer is not None:
        pieces = tokenizer.pieces
        text |= Text(tokenizer="tokenizers", words=pieces.size, padding=pieces.padding, closing=pieces.closing)  # type: ignore[typeddict-item]
    return text


def text_fields(schema: Schema) -> str:
    """What the texts of a declared data set are made of, as the manifest says it."""
    return ",".join(field.name for field in schema.fields if field.kind == "text") or "none"


def token_file(tokenizer: TokenizerFile | None) -> str:
    """The name of the vocabulary's or the tokenizer's file in a folder of shards."""
    return WORDS if tokenizer is None else TOKENIZER
