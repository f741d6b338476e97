"""Evaluations that come from trained runs without training, and derived.json, which describes one in its folder.

The folder has the files of an evaluation; derived.json is written last, so an unfinished one has none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from typing_extensions import TypedDict

from genre_dist.config.run import METADATA, WEIGHTS, experiment
from genre_dist.lock import FILE as LOCK
from genre_dist.printable import printable
from genre_dist.sealed import read_sealed, write_sealed
from genre_dist.storage import sha256_of
from genre_dist.validation import Sha256

FILE = "derived.json"
MODEL = (METADATA, WEIGHTS)
"""The files of a run that an evaluation with a field hidden is made from."""
PREDICTIONS = ("predictions-val.parquet", "predictions-test.parquet")
"""The files of a run that a fusion is made from."""
_OWN_FILES = (FILE, "thresholds.json", "metrics-", "predictions-", LOCK)


class Derived(TypedDict):
    """The content of derived.json."""

    kind: Literal["hidden", "late fusion", "ensemble"]
    title: str
    of: list[str]
    """The runs' paths, as given."""
    hidden: list[str]
    """Fields that were hidden from the model."""
    weights: dict[str, dict[str, Annotated[float, Ge(0)]]] | None
    """Of a late fusion: the runs that have a sample, joined by `and` -> run -> its weight."""
    data_fingerprint: str | None
    """Of the runs' data; several, of runs on different packings, are joined by `+`. None if a run has none."""
    made_from: list[dict[str, Sha256]]
    """For each run the files it was computed from, with their checksums."""


def read_derived(folder: Path) -> Derived | None:
    """The description of a derived evaluation; None in any other folder. Raises ValueError for a damaged file."""
    path = folder / FILE
    return read_sealed(Derived, path, "make the folder again") if path.is_file() else None


def write_derived(folder: Path, derived: Derived) -> None:
    write_sealed(folder / FILE, dict(derived))


def refuse_other_folder(folder: Path) -> None:
    """Raise ValueError unless a derived evaluation may be written here: a new folder, or one of such an evaluation."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if foreign := [name for name in names if not name.startswith(_OWN_FILES)]:
        raise ValueError(f"{folder} has {printable(foreign[0])} and so belongs to something else: choose a new --out")


def begin(folder: Path) -> None:
    """Remove derived.json of an earlier evaluation: from here on the folder is unfinished."""
    (folder / FILE).unlink(missing_ok=True)


def checksums(run: Path, names: Sequence[str]) -> dict[str, str]:
    """File -> its SHA-256. Raises OSError if one is missing."""
    return {name: sha256_of(run / name) for name in names}


def is_made_from(folder: Path, runs: Sequence[Path], names: Sequence[str], **wanted: Any) -> bool:
    """Whether the folder's evaluation has these values and was computed from what these files of the runs are now."""
    try:
        derived: Any = read_derived(folder)
        current = [checksums(run, names) for run in runs]
    except (OSError, ValueError):
        return False  # a missing or damaged file means: not made from it
    return derived is not None and all(derived[key] == value for key, value in {"made_from": current, **wanted}.items())


def name_without_seed(run: Path) -> str:
    """A run's name in titles: text of `text-seed0` and of `text/seed0`."""
    return Path(experiment(run)).name
