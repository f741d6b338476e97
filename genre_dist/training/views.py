"""Views of the record: the console, Weights & Biases, TensorBoard."""

import importlib.util
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.config import Config, ModelConfig
from genre_dist.config.continuing import describe
from genre_dist.training.wandb_files import history

Row = dict[str, Any]
SHOWN = ("train", "val", "test")
"""Kinds of rows with numbers to draw."""
GENRE_NUMBERS = ("f1", "average_precision", "auc")


class Example(NamedTuple):
    """One film of an evaluation, as people see it."""

    id: int
    poster: NDArray[np.uint8] | None  # [size, size, 3]
    overview: str | None
    genres: str
    predicted: str


class View(Protocol):
    """Somewhere the record is shown."""

    def show(self, row: Row, told: Row) -> None:
        """Show a row; `told` has the rest of an evaluation: `per_genre` and `films_shown`, or nothing."""

    def close(self) -> None: ...


class Console:
    """One line a row on stdout."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def show(self, row: Row, told: Row) -> None:
        if row["kind"] == "train":
            left = (self.total_steps - row["step"]) * row["step_seconds"]
            print(
                f"step {row['step']}/{self.total_steps}  epoch {row['epoch']}  loss {row['loss']:.4f}  "
                f"grad {row['grad_norm']:.3f}  {row['samples_per_second']:.1f} samples/s  "
                f"data wait {row['data_wait']:.0%}  {_clock(left)} left",
                flush=True,
            )
        elif row["kind"] == "end":
            print(f"ended after step {row['step']}: {row['reason']}", flush=True)
        elif row["kind"] == "settings":
            print(f"from step {row['step']} on: {describe(row['changes'])}", flush=True)
        else:
            print(
                f"{row['kind']} after step {row['step']}: loss {row['loss']:.4f}  micro F1 {row['micro_f1']:.4f}  "
                f"macro F1 {row['macro_f1']:.4f}  mAP {row['mean_average_precision']:.4f}",
                flush=True,
            )

    def close(self) -> None:
        pass


class WandB:
    """The record in Weights & Biases.

    A resumed run goes on in the same W&B run, whose id is kept in the run's folder, and shows no step twice: what W&B
    has of it is read back first. Under a sweep the agent's id is taken.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        import wandb

        asked = os.environ.get("WANDB_MODE") if config.tracking.wandb == "auto" else config.tracking.wandb
        online = asked == "online" or (asked not in ("offline", "disabled") and _has_key())
        self.wandb, run_id = wandb, _run_id(folder)
        self.run = wandb.init(
            project=config.tracking.project,
            group=config.tracking.group or Path(config.data.shards).name,
            job_type=config.tracking.job_type or job_type(config.model),
            name=folder.name,
            id=run_id,
            resume="allow" if online else None,
            mode="online" if online else "offline",
            dir=str(folder),
            config=config.to_dict(),
            settings=wandb.Settings(silent=True),
        )
        self.run.define_metric("*", step_metric="global_step")
        self.seen: dict[str, int] = {}  # kind of row -> last step that W&B has
        if online:
            self.seen = {kind: self.run.summary.get(f"{kind}/step", -1) for kind in SHOWN}
        else:
            for logged in history(folder, run_id):
                for kind in SHOWN:
                    self.seen[kind] = max(self.seen.get(kind, -1), logged.get(f"{kind}/step", -1))

    def show(self, row: Row, told: Row) -> None:
        kind = row["kind"]
        if kind == "end":
            self.run.summary["ended"] = row["reason"]
        if kind not in SHOWN:  # a run's settings are W&B's own to show
            return
        if row["step"] <= self.seen.get(kind, -1):
            return
        shown: Row = dict(numbers(row, told)) | {"global_step": row["step"], "epoch": row.get("epoch")}
        if told.get("films_shown"):
            shown[f"{kind}/films"] = self._table(told["films_shown"])
            shown[f"{kind}/posters"] = [
                self.wandb.Image(film.poster, caption=f"{film.genres} | predicted: {film.predicted}")
                for film in told["films_shown"]
                if film.poster is not None
            ]
        if kind == "test" and told.get("per_genre"):
            table = self.wandb.Table(["genre", "F1"], [[name, its["f1"]] for name, its in told["per_genre"].items()])
            shown["test/f1_by_genre"] = self.wandb.plot.bar(table, "genre", "F1", title="F1 by genre, test")
        self.run.log(shown)

    def _table(self, films: list[Example]) -> Any:
        table = self.wandb.Table(["film", "poster", "overview", "genres", "predicted"])
        for film in films:
            poster = None if film.poster is None else self.wandb.Image(film.poster)
            table.add_data(film.id, poster, film.overview, film.genres, film.predicted)
        return table

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    """The record in TensorBoard. What was written beyond the step that a run resumes from is hidden."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1, flush_secs=10)

    def show(self, row: Row, told: Row) -> None:
        if row["kind"] == "end":
            self.writer.add_text("ended", row["reason"], row["step"])
        if row["kind"] == "settings":
            self.writer.add_text("settings", describe(row["changes"]), row["step"])
        if row["kind"] not in SHOWN:
            return
        for name, value in numbers(row, told).items():
            self.writer.add_scalar(name, value, row["step"])
        for film in told.get("films_shown") or ():
            text = f"{film.genres} | predicted: {film.predicted} | {film.overview or ''}"
            self.writer.add_text(f"{row['kind']}_films/{film.id}", text, row["step"])
            if film.poster is not None:
                self.writer.add_image(f"{row['kind']}_films/{film.id}", film.poster, row["step"], dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


def check_views(config: Config) -> None:
    """Raise ValueError if a view that is asked for cannot be had."""
    if config.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "tracking.tensorboard needs tensorboard, which is not installed: pip install 'genre_dist[tensorboard]'"
        )


def numbers(row: Row, told: Row) -> dict[str, float]:
    """What of a row (and its evaluation's genres) can be drawn as a curve: name -> number."""
    kind = row["kind"]
    found = {f"{kind}/{key}": value for key, value in row.items() if isinstance(value, (int, float)) and key != "epoch"}
    for key, values in row.items():
        if key.startswith("rank_"):
            found |= {f"ranks/{rank}/{key.removeprefix('rank_')}": value for rank, value in enumerate(values)}
    for genre, its in (told.get("per_genre") or {}).items():
        found |= {f"{kind}_genres/{name}/{genre}": its[name] for name in GENRE_NUMBERS if its.get(name) is not None}
    return found


def job_type(model: ModelConfig) -> str:
    """What a run is among those it is compared with: text, poster, frozen or end_to_end, whole or in part."""
    return model.kind if model.kind in ("text", "poster", "frozen") else "end_to_end"


def _run_id(folder: Path) -> str:
    """The run's id in W&B, kept in its folder, beside it the folder that it is of: a copy is a run of its own.

    Raises ValueError if what is kept is no id.
    """
    file, home = folder / "wandb_id", folder / "wandb_id_of"
    here, kept, of = str(folder.resolve()), _kept(file), _kept(home)
    if kept and not re.fullmatch("[A-Za-z0-9_-]{1,128}", kept):
        raise ValueError(f"{file}: no id of W&B's; remove it to begin a new run there")
    is_copy = of not in ("", here) and _is_another(Path(of, file.name), file, kept)
    if not kept or is_copy:
        of_sweep = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        kept = of_sweep or secrets.token_hex(4)
        with atomic_file(file, "w") as written:
            written.write(kept)
    if of != here:
        with atomic_file(home, "w") as written:
            written.write(here)
    return kept


def _is_another(other: Path, file: Path, kept: str) -> bool:
    """Whether the same id is kept elsewhere too; a folder may be seen under two paths."""
    with suppress(OSError):
        return _kept(other) == kept and not other.samefile(file)
    return False


def _kept(file: Path) -> str:
    """What a small file says, nothing if there is none."""
    with suppress(OSError, ValueError):
        return file.read_bytes()[:8192].replace(b"\0", b"").decode(errors="replace").strip()
    return ""


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError):
        return "api.wandb.ai" in (Path.home() / ".netrc").read_text()
    return False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
