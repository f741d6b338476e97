"""The record of a run: metrics.jsonl on rank 0. The console, W&B and TensorBoard are views of it."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from genre_dist.atomic import atomic_file
from genre_dist.config import Config
from genre_dist.training.views import Console, TensorBoard, View, WandB


class Record:
    """Appends rows to metrics.jsonl, each at once on disk, and shows them in every view.

    A resumed run first drops the rows after the step it resumes from, so no step is there twice; resumed after its
    last step, also the final evaluations, which are made again.
    """

    def __init__(self, path: Path, resume_step: int, total_steps: int, views: list[View]) -> None:
        self.views = views
        finished = resume_step == total_steps
        self.kept = _keep(
            path,
            lambda row: row["kind"] != "end" and row["step"] <= resume_step - (finished and row["kind"] != "train"),
        )
        self.written = {(row["kind"], row["step"]) for row in self.kept}
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed in close)

    @property
    def validated(self) -> set[int]:
        """Steps after which the val split was evaluated."""
        return {step for kind, step in self.written if kind == "val"}

    def write(self, row: dict[str, Any], told: dict[str, Any] | None = None) -> None:
        """Append a row, unless it is there; `told` is the rest of an evaluation, for the views."""
        if (row["kind"], row["step"]) in self.written:
            return
        self.written.add((row["kind"], row["step"]))
        if row["kind"] == "val":
            self.kept.append(row)
        self._file.write(json.dumps({key: _plain(value) for key, value in row.items()}) + "\n")
        for view in self.views:
            view.show(row, told or {})

    def close(self) -> None:
        self._file.close()
        for view in self.views:
            view.close()


def open_record(config: Config, folder: Path, resume_step: int, total_steps: int) -> Record:
    """The record of a run with the views its configuration asks for."""
    record = Record(folder / "metrics.jsonl", resume_step, total_steps, [Console(total_steps)])
    if config.tracking.tensorboard:
        record.views.append(TensorBoard(folder, resume_step))
    if config.tracking.wandb != "off":
        wandb = WandB(config, folder)
        for row in record.kept:  # what a kill kept from getting there
            wandb.show(row, {})
        record.views.append(wandb)
    return record


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Drop the other rows and return these; a last line cut short by a kill goes too."""
    if not path.exists():
        return []
    kept = [(line, row) for line, row in _rows(path) if wanted(row)]
    with atomic_file(path, "w") as file:
        file.writelines(f"{line}\n" for line, _ in kept)
    return [row for _, row in kept]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a record, without a last one that a kill cut short."""
    return [row for _, row in _rows(path)] if path.exists() else []


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            yield line, json.loads(line)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity; they are written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
