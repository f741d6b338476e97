"""The ids of a declared data set, which may be any strings: their number in an index, their key in a tar.

(TMDB's ids are numbers already and stay what they are in both.)
"""

import hashlib
from urllib.parse import quote, unquote_to_bytes

LONGEST_KEY = 80
"""Bytes of a key, so that with a field's extension a member's name fits into the 100 of a tar's header."""


def number_of_id(id: str) -> int:
    """An id as a number of 63 bits for the index: always a hash, so that `7` and `007` are two samples."""
    digest = hashlib.blake2b(id.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def member_key(id: str, most: int = LONGEST_KEY) -> str:
    """An id as the key of its members in a tar: letters, digits, `-` and `_` as they are, the rest as %XX.

    So a key has no dot (at which WebDataset cuts it off) and no slash. Raises ValueError for a blank id and for one
    whose key would have more than `most` bytes.
    """
    key = quote(id, safe="").replace(".", "%2E").replace("~", "%7E")
    if not key:
        raise ValueError("an id is blank; give every sample one")
    if len(key) > most:
        raise ValueError(
            f"the id {id[:60]!r} takes {len(key)} bytes as a key in a tar, where {most} fit (all but letters, "
            "digits, - and _ take 3 a byte); give shorter ids"
        )
    return key


def id_of_key(key: str) -> str:
    """The id whose key this is. Raises ValueError for what is no key that `member_key` makes."""
    try:
        id = unquote_to_bytes(key).decode()
        if member_key(id) == key:
            return id
    except ValueError:
        pass
    raise ValueError(f"{key[:LONGEST_KEY]!r} is no key of a sample that was packed from a declared data set")
