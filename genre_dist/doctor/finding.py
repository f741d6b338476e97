"""The result of a check, as a row of the table or of the JSON."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """The result of one check; its fields are the keys of the JSON."""

    name: str
    status: Literal["ok", "note", "wrong"]
    """`note`: works, but worth knowing. `wrong`: training would fail or crawl."""
    told: str
    fix: str = ""
    """The remedy; empty if none is needed."""
