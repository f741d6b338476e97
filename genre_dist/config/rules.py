"""How the sections of the configuration refuse what cannot be, and points in time that several of them have."""

EPOCH = "ep"


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def is_point(point: int | str) -> bool:
    """Whether this is a point in a run: a step (200) or an epoch (2ep), counted from 0."""
    return str(point).removesuffix(EPOCH).isdecimal()


def in_steps(point: int | str, steps_per_epoch: int) -> int:
    """A point in a run as a step."""
    count = int(str(point).removesuffix(EPOCH))
    return count * steps_per_epoch if str(point).endswith(EPOCH) else count
