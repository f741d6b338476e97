"""What `pack` is told of the kind of catalogue that it packs: TMDB's films, or a declared data set."""

from collections.abc import Callable
from typing import Any, NamedTuple

from genre_dist.packing.layout import Chosen, ExistingShards
from genre_dist.packing.shard import Job
from genre_dist.packing.tokenizer import WORDS, TokenizerFile
from genre_dist.packing.vectors import WordVectors
from genre_dist.pretrained import TOKENIZER
from genre_dist.storage import AnyPath
from genre_dist.stream.manifest import Text
from genre_dist.stream.words import load_vectors, vectors_sha256

VECTORS = "vectors.npy"


class Kind(NamedTuple):
    """The steps that differ. `Recipe`, report and manifest are each kind's own, with the attributes used in pack.py."""

    what: str
    """What a sample is called."""
    recipe: Callable[..., Any]
    """Options of `pack` -> the recipe. Raises ValueError for an impossible one."""
    existing_shards: Callable[[AnyPath, Any], ExistingShards]
    choose: Callable[[AnyPath, Any, ExistingShards], Chosen]
    lay_out: Callable[..., list[Any]]
    pack_shard: Callable[[Any], Any]
    """A function at the top of a module: a Job -> its report."""
    finished: Callable[[Any], Any]
    """A Job -> the report of a shard that is packed as it says, else None."""
    manifest: Callable[["Packing", list[Any]], Any]
    """Write the manifest of these reports, and print what is odd about them."""
    load: Callable[[AnyPath], Any]
    """Read the manifest of a folder."""


class Packing(NamedTuple):
    """The plan for a folder: its recipe, vocabulary and shards to pack."""

    kind: Kind
    out: AnyPath
    recipe: Any
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


def text_of_manifest(packing: Packing, source: str) -> Text:
    """The manifest's entry on texts, which are made of `source`."""
    text = Text(
        source=source,
        vocabulary=token_file(packing.tokenizer),
        words=len(packing.words),
        vocabulary_sha256=packing.recipe.vocabulary_sha256,
        vectors=VECTORS if packing.dim else None,
        dim=packing.dim,
    )
    if (vectors := load_vectors(packing.out, text)) is not None:
        text["vectors_sha256"] = vectors_sha256(vectors)
    if packing.tokenizer is not None:
        pieces = packing.tokenizer.pieces
        text |= Text(tokenizer="tokenizers", words=pieces.size, padding=pieces.padding, closing=pieces.closing)  # type: ignore[typeddict-item]
    return text


def token_file(tokenizer: TokenizerFile | None) -> str:
    """The name of the vocabulary's or the tokenizer's file in a folder of shards."""
    return WORDS if tokenizer is None else TOKENIZER
