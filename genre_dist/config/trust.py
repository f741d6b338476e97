"""Code that a configuration names runs only if the user has trained with it on this machine, or passes --trust_code.

A run's folder may come from anybody, and its config.yaml may name any function (`model.poster.arch: module:function`).
The functions that a user trained with are noted outside of all runs' folders, under $XDG_STATE_HOME, one name a line.
"""

import os
from contextlib import suppress
from pathlib import Path

from genre_dist.atomic import atomic_file
from genre_dist.config import Config


def trust_code_of(config: Config) -> None:
    """Note the code that a user trains with: other runs that name it then need no --trust_code."""
    code = _code(config)
    with suppress(OSError, RuntimeError):  # without a writable home, --trust_code remains
        known = _known()
        if code is not None and code not in known:
            _notes().parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(_notes(), "w") as file:
                file.writelines(f"{name}\n" for name in sorted(known | {code}))


def refuse_foreign_code(config: Config, file: Path) -> None:
    """Raise ValueError if a run's configuration, read from `file`, names code that no user here trained with."""
    code = _code(config)
    if code is None:
        return
    known: set[str] = set()
    with suppress(OSError, RuntimeError):
        known = _known()
    if code not in known:
        raise ValueError(
            f"{file} names code to be run, model.poster.arch={code}, and nothing here notes that you have trained "
            "with it: look into it, and pass --trust_code if you trust it"
        )


def _code(config: Config) -> str | None:
    return config.model.poster.code


def _known() -> set[str]:
    return set(_notes().read_text("utf-8", "replace").splitlines()) if _notes().is_file() else set()


def _notes() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "genre_dist", "trusted_code")
