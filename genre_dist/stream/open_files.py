"""How many files readers hold open: a share of what the system lets a process open."""

import errno
import resource
from contextlib import suppress

SHARE = 8
"""A process may have readers to train and to evaluate, each with tars and indexes, beside its sockets and pipes."""


def most_open_files(most: int) -> int:
    """How many files one part of a reader may hold open: up to `most`, fewer where the system allows few.

    What the system allows this process, and those that it starts, is raised as far as it may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // SHARE))


def is_too_many(error: OSError) -> bool:
    """Whether a file could not be opened because too many are."""
    return error.errno in (errno.EMFILE, errno.ENFILE)
