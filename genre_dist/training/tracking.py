"""The record of a run: metrics.jsonl on rank 0. The console and W&B are views of it."""

import json
import math
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from genre_dist.atomic import atomic_file
from genre_dist.config import Config


class View(Protocol):
    """Somewhere the record is shown."""

    def show(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Record:
    """Appends rows to metrics.jsonl, each at once on disk, and shows them in every view.

    A resumed run first drops the rows after the step it resumes from, so no step is there twice; resumed after its
    last step, also the final evaluations, which are made again.
    """

    def __init__(self, path: Path, resume_step: int, total_steps: int, views: list[View]) -> None:
        self.views = views
        finished = resume_step == total_steps
        kept = _keep(path, lambda row: row["step"] <= resume_step - (finished and row["kind"] != "train"))
        self.validated = {row["step"] for row in kept if row["kind"] == "val"}
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed in close)

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps({key: _plain(value) for key, value in row.items()}) + "\n")
        for view in self.views:
            view.show(row)

    def close(self) -> None:
        self._file.close()
        for view in self.views:
            view.close()


class Console:
    """One line a row on stdout."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def show(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            left = (self.total_steps - row["step"]) * row["step_seconds"]
            print(
                f"step {row['step']}/{self.total_steps}  epoch {row['epoch']}  loss {row['loss']:.4f}  "
                f"grad {row['grad_norm']:.3f}  {row['samples_per_second']:.1f} samples/s  "
                f"data wait {row['data_wait']:.0%}  {_clock(left)} left",
                flush=True,
            )
        else:
            print(
                f"{row['kind']} after step {row['step']}: loss {row['loss']:.4f}  micro F1 {row['micro_f1']:.4f}  "
                f"macro F1 {row['macro_f1']:.4f}  mAP {row['mean_average_precision']:.4f}",
                flush=True,
            )

    def close(self) -> None:
        pass


class WandB:
    """The record in Weights & Biases. A resumed run goes on in the same W&B run: its id is kept in the run's folder."""

    def __init__(self, config: Config, folder: Path) -> None:
        import wandb

        asked = os.environ.get("WANDB_MODE") if config.tracking.wandb == "auto" else config.tracking.wandb
        online = asked == "online" or (asked not in ("offline", "disabled") and _has_key())
        id_file = folder / "wandb_id"
        if not id_file.exists():
            with atomic_file(id_file, "w") as file:
                file.write(secrets.token_hex(4))
        self.run = wandb.init(
            project=config.tracking.project,
            group=config.tracking.group,
            name=folder.name,
            id=id_file.read_text(),
            resume="allow" if online else None,
            mode="online" if online else "offline",
            dir=str(folder),
            config=config.to_dict(),
            job_type="train",
            settings=wandb.Settings(silent=True),
        )
        self.run.define_metric("*", step_metric="global_step")

    def show(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        numbers = {
            f"{kind}/{key}": value
            for key, value in row.items()
            if isinstance(value, (int, float)) and key not in ("step", "epoch")
        }
        self.run.log(numbers | {"global_step": row["step"], "epoch": row["epoch"]})

    def close(self) -> None:
        self.run.finish()


def open_record(config: Config, folder: Path, resume_step: int, total_steps: int) -> Record:
    """The record of a run with the views its configuration asks for."""
    views: list[View] = [Console(total_steps)]
    if config.tracking.wandb != "off":
        views.append(WandB(config, folder))
    return Record(folder / "metrics.jsonl", resume_step, total_steps, views)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError):
        return "api.wandb.ai" in (Path.home() / ".netrc").read_text()
    return False


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Drop the other rows and return these; a last line cut short by a kill goes too."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if wanted(row):
                kept.append((line, row))
    with atomic_file(path, "w") as file:
        file.writelines(f"{line}\n" for line, _ in kept)
    return [row for _, row in kept]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity; they are written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
