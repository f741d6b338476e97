"""What a check finds, as a row for people and for programs."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "note", "wrong"]
    """`note`: works, but worth knowing. `wrong`: training would fail or crawl."""
    told: str
    fix: str = ""
    """What to do about it; empty if nothing."""
