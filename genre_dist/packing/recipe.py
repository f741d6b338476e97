"""The recipe: the options that, with its samples, decide a shard's bytes."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, get_args

from genre_dist.packing.posters import Fit
from genre_dist.schema import TMDB, Schema


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of a packing. Raises ValueError for an impossible value."""

    require: tuple[str, ...] = ("poster", "overview")
    """Fields that every packed sample has."""
    text: str = "overview"
    """What is encoded of films; '' for a declared data set, whose schema says it."""
    size: int = 256
    fit: Fit = "squash"
    quality: int = 90
    shard_size: int = 1000
    vectors_sha256: str = ""
    """Of the file of word vectors, '' without one; words in it enter the vocabulary even if they occur once."""
    vocabulary_sha256: str = ""
    tokenizer_sha256: str = ""
    """Of the file of --tokenizer, '' for words."""
    schema_sha256: str = ""
    """Of the schema of a declared data set, '' for films."""

    def __post_init__(self) -> None:
        if self.text not in ("overview", "title", "both", ""):
            raise ValueError(f"--text is overview, title or both, not {self.text}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"--fit is {', '.join(get_args(Fit))}, not {self.fit}")
        if not 1 <= self.size <= 4096 or self.shard_size < 1:
            raise ValueError("--size goes from 1 to 4096, --shard_size is at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality goes from 1 to 100, not {self.quality}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it. Films' shards of words keep the keys and reports of the versions that had only these."""
        newer = ("tokenizer_sha256", "schema_sha256")
        return {name: value for name, value in asdict(self).items() if value or name not in newer}


def recipe_of(schema: Schema, **options: Any) -> Recipe:
    """The recipe of a data set. Raises ValueError for a required field that it does not have, and as Recipe does."""
    if schema != TMDB:
        written = json.dumps(schema.to_dict(), sort_keys=True).encode()
        options = {"require": (), "text": "", "schema_sha256": hashlib.sha256(written).hexdigest()} | options
    recipe = Recipe(**options)
    if unknown := set(recipe.require) - set(schema.by_name):
        raise ValueError(f"--require knows {' and '.join(schema.by_name)}, not {', '.join(sorted(unknown))}")
    return recipe


def recipe_key(recipe: Recipe, split: str, lines_sha256: str) -> str:
    """A hash of the inputs that decide a shard's bytes; a finished shard with the same key is not packed again."""
    identity = json.dumps([recipe.to_dict(), split, lines_sha256], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
