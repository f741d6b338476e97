"""The record of a run: metrics.jsonl on rank 0. The console, W&B and TensorBoard are views of it."""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genre_dist.atomic import atomic_file
from genre_dist.config import Config
from genre_dist.config.run import RECORD
from genre_dist.printable import printable
from genre_dist.schema import TMDB, Schema
from genre_dist.training.views import Console, TensorBoard, View, WandB

LONGEST_LINE = 10 << 20
"""In bytes; a row has a few hundred."""


class MetricsLog:
    """Appends rows to metrics.jsonl, each at once on disk, and shows them in every view.

    A resumed run first drops the rows after the step it resumes from, so no step has two rows; a run resumed after its
    last step also drops the final evaluations, which are repeated. If a run has to start at step 0, its earlier record
    is moved to a file of its own, with a message. Raises ValueError for a damaged record.
    """

    def __init__(self, path: Path, resume_step: int, total_steps: int, views: list[View]) -> None:
        self.path, self.views = path, views
        if resume_step == 0:
            _set_aside(path)
        finished = resume_step == total_steps
        self.kept = _keep(
            path,
            lambda row: (
                row["kind"] != "end" and row["step"] <= resume_step - (finished and row["kind"] in ("val", "test"))
            ),
        )
        """The rows that are no steps: evaluations and changed settings."""
        self.written = {(row["kind"], row["step"]) for row in self.kept}
        self._trained = resume_step
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed in close)

    @property
    def validated(self) -> set[int]:
        """Steps after which the val split was evaluated."""
        return {step for kind, step in self.written if kind == "val"}

    def write(self, row: dict[str, Any], details: dict[str, Any] | None = None) -> None:
        """Append a row, unless the record has it; `details` is the rest of an evaluation, for the views.

        Raises OSError, and leaves the record unchanged, if the disk is full.
        """
        kind, step = row["kind"], row["step"]
        if (kind, step) in self.written or (kind == "train" and step <= self._trained):
            return
        self._append(f"{json.dumps({key: _plain(value) for key, value in row.items()})}\n".encode())
        if kind == "train":
            self._trained = step
        else:
            self.written.add((kind, step))
            self.kept.append(row)
        for view in self.views:
            view.show(row, details or {})

    def close(self) -> None:
        self._file.close()
        for view in self.views:
            view.close()

    def _append(self, line: bytes) -> None:
        before = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(before)
            raise OSError(error.errno, f"{error.strerror}: the next start goes on", str(self.path)) from None


def open_record(
    config: Config, folder: Path, resume_step: int, total_steps: int, declared: Schema = TMDB
) -> MetricsLog:
    """The record of a run with the views its configuration asks for."""
    record = MetricsLog(folder / RECORD, resume_step, total_steps, [Console(total_steps, declared)])
    if config.tracking.tensorboard:
        record.views.append(TensorBoard(folder, resume_step, declared))
    if config.tracking.wandb != "off":
        wandb = WandB(config, folder, declared)
        for row in read_rows(folder / RECORD):  # rows that a kill kept from W&B
            wandb.show(row, {})
        record.views.append(wandb)
    return record


def _set_aside(path: Path) -> None:
    """Move the record of a run that starts at step 0 again to another file, and print a message."""
    rows = sum(1 for _ in read_rows(path))
    if rows == 0:
        return
    number = 1
    while (aside := path.with_name(f"metrics-lost-{number}.jsonl")).exists():
        number += 1
    path.rename(aside)
    print(f"no checkpoint was written yet: step 1 again; the {rows} rows of before are kept in {aside}", flush=True)


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Drop unwanted rows (a message says how many) and a last line cut short by a kill; return rows that are no steps.

    A record that stays the same is not rewritten.
    """
    kept, size, dropped = [], 0, 0
    for line, row in lines_of(path):
        if not wanted(row):
            dropped += 1
            continue
        size += len(line)
        if row["kind"] != "train":
            kept.append(row)
    if path.exists() and path.stat().st_size != size:
        with atomic_file(path) as file:
            file.writelines(line for line, row in lines_of(path) if wanted(row))
    if dropped:
        print(f"{dropped} rows of the record are of what is done again, and go", flush=True)
    return kept


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a record, without a last one that a kill cut short; none if the file does not exist.

    Raises ValueError, naming file and line, for any other line that is no row.
    """
    return (row for _, row in lines_of(path))


def lines_of(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a record with the row of each, as `read_rows`."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            row, problem = _parsed(line)
            if row is not None:
                yield line if line.endswith(b"\n") else line + b"\n", row
            elif line.endswith(b"\n") or len(line) == LONGEST_LINE:
                raise ValueError(
                    f"{path}: line {number} is no row of a record ({problem}); mend that line, or remove it"
                )


def _parsed(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """A line of a record, or what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, printable(error)[:100]
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return None, "it has no kind"
    counts = (row.get("step"), row.get("epoch", 0))
    if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
        return None, "its step or epoch is no count"
    return row, ""


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for both."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
