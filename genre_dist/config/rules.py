"""Checks that the sections of the configuration share, and points in a run (a step or an epoch)."""

import difflib
from collections.abc import Iterable

EPOCH = "ep"


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def near(name: str, names: Iterable[str], cutoff: float = 0.4) -> str | None:
    """The name most similar to another one; None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)), None)


def known(key: object, names: Iterable[str], prefix: str) -> None:
    """Raise ValueError, naming the nearest right key, for an unknown key."""
    if key not in (names := list(names)):
        close = near(str(key), names)
        hint = f"did you mean `{close}`?" if close else f"there are {', '.join(names)}"
        raise ValueError(f"unknown key `{prefix}{key}`; {hint}")


def is_point(point: int | str) -> bool:
    """Whether this is a point in a run: a step (200) or an epoch (2ep), counted from 0."""
    return str(point).removesuffix(EPOCH).isdecimal()


def in_steps(point: int | str, steps_per_epoch: int) -> int:
    """A point in a run as a step."""
    count = int(str(point).removesuffix(EPOCH))
    return count * steps_per_epoch if str(point).endswith(EPOCH) else count


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the candidates nearest to `name`, as the end of an error message."""
    candidates = list(names)
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.4) or candidates[:5]
    return f"nearest: {', '.join(close)}"
