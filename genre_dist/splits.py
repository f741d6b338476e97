"""The split of a film and its order within the split: two hashes of its id, so more data never moves a film.

For a sample of a declared data set the id is its number (`number_of_id`), and its split is that of the number of what
it is split by.
"""

import hashlib

from genre_dist.schema import TMDB, Schema

RULE = "blake2b(str(tmdb_id), person='split') / 2^64: < 0.8 train, < 0.9 val, else test; order by person='order'"

DECLARED_RULE = (
    "n(text) = blake2b(text, 8 bytes) >> 1; blake2b(str(n(split_by)), person='split') / 2^64: < 0.8 train, < 0.9 val, "
    "else test; order by blake2b(str(n(id)), person='order')"
)
"""Of shards of a declared data set."""


def rule_of(schema: Schema) -> str:
    """The rule of splits and order, as manifests tell it."""
    return RULE if schema == TMDB else DECLARED_RULE


def split_of(tmdb_id: int) -> str:
    """The split of a film: 80 % train, 10 % val, 10 % test."""
    share = _hash(tmdb_id, b"split") / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def order_key(tmdb_id: int) -> int:
    """The sort key of films in their split; its hash order makes every shard a random draw of the split."""
    return _hash(tmdb_id, b"order")


def _hash(tmdb_id: int, purpose: bytes) -> int:
    digest = hashlib.blake2b(str(tmdb_id).encode(), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big")
