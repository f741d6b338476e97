"""The rule of splits and order in words, as manifests have it, and its two functions."""

from genre_dist.schema import TMDB, Schema
from genre_dist.split_rule import order_key, split_of

__all__ = ["DECLARED_RULE", "RULE", "order_key", "rule_of", "split_of"]

RULE = "blake2b(str(tmdb_id), person='split') / 2^64: < 0.8 train, < 0.9 val, else test; order by person='order'"

DECLARED_RULE = (
    "n(text) = blake2b(text, 8 bytes) >> 1; blake2b(str(n(split_by)), person='split') / 2^64: < 0.8 train, < 0.9 val, "
    "else test; order by blake2b(str(n(id)), person='order')"
)
"""Of shards of a declared data set."""


def rule_of(schema: Schema) -> str:
    """The rule of splits and order, as manifests tell it."""
    return RULE if schema == TMDB else DECLARED_RULE
