"""Keys of samples in anyone's tars, as WebDataset sees them."""

import hashlib
import re

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # WebDataset's rule: the key ends at the first dot of the name


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member; None for one that is part of no sample."""
    match = _NAME.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else None


def sample_id(key: str) -> int:
    """A sample's id: the number that its key is (`000000012` is 12), or a hash of the key. Keys may share an id."""
    base = key.rpartition("/")[2]
    if base == key and base.isascii() and base.isdecimal() and len(base) <= 18:
        return int(base)
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1
