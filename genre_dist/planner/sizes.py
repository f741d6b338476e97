"""Sizes of memory in text, and the length of a typical overview."""

import re

TYPICAL_TOKENS = 55
"""Median length of real overviews, rounded up; plans count with it."""
_UNITS = {"KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


def parse_size(text: str) -> int:
    """Bytes of a size such as 24GB, 80 GiB or 512MB. Raises ValueError for anything else.

    GB and GiB both mean 2^30 bytes: cards sold as "24 GB" have that many.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper() + "B"]) if match else 0
    if size <= 0:
        raise ValueError(f"`{text}` is no size of memory: write a number and a unit, such as 24GB, 80GiB or 512MB")
    return size


def gb(count: float) -> str:
    """Bytes as text in GB of 2^30."""
    return f"{count / 2**30:.2f} GB"


def mb(count: float) -> str:
    """Bytes as text in MB of 10^6."""
    return f"{count / 1e6:.1f} MB"
