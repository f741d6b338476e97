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
from genre_dist.schema import TMDB, Schema, plural
from genre_dist.training.wandb_files import history

Row = dict[str, Any]
SCALAR_KINDS = ("train", "val", "test")
"""Kinds of rows whose numbers are drawn as curves."""
LABEL_SCALARS = ("f1", "average_precision", "auc")


class Example(NamedTuple):
    """One sample of an evaluation with image, text, labels and prediction."""

    id: int | str
    """As the data set has it."""
    poster: NDArray[np.uint8] | None  # [size, size, 3]
    overview: str | None
    genres: str
    predicted: str


class View(Protocol):
    """A display of the record."""

    def show(self, row: Row, details: Row) -> None:
        """Show a row; `details` has the rest of an evaluation: `per_genre` and `examples`, or nothing."""

    def close(self) -> None: ...


class Console:
    """One line a row on stdout."""

    def __init__(self, total_steps: int, declared: Schema = TMDB) -> None:
        self.total_steps = total_steps
        name, title = ("accuracy", "accuracy") if declared.labels.choose == "one" else ("micro_f1", "micro F1")
        self._first, self._first_title = name, title

    def show(self, row: Row, details: Row) -> None:
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
                f"{row['kind']} after step {row['step']}: loss {row['loss']:.4f}  "
                f"{self._first_title} {row[self._first]:.4f}  "
                f"macro F1 {row['macro_f1']:.4f}  mAP {row['mean_average_precision']:.4f}",
                flush=True,
            )

    def close(self) -> None:
        pass


class WandB:
    """The record in Weights & Biases.

    A resumed run continues the same W&B run, whose id is kept in the run's folder. It logs no step twice: the last
    logged steps are read back first. A sweep's run has the id of its agent.
    """

    def __init__(self, config: Config, folder: Path, declared: Schema = TMDB) -> None:
        import wandb

        asked = os.environ.get("WANDB_MODE") if config.tracking.wandb == "auto" else config.tracking.wandb
        online = asked == "online" or (asked not in ("offline", "disabled") and _has_key())
        self.wandb, self.declared, run_id = wandb, declared, _run_id(folder)
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
            self.seen = {kind: self.run.summary.get(f"{kind}/step", -1) for kind in SCALAR_KINDS}
        else:
            for logged in history(folder, run_id):
                for kind in SCALAR_KINDS:
                    self.seen[kind] = max(self.seen.get(kind, -1), logged.get(f"{kind}/step", -1))

    def show(self, row: Row, details: Row) -> None:
        kind, declared = row["kind"], self.declared
        if kind == "end":
            self.run.summary["ended"] = row["reason"]
        if kind not in SCALAR_KINDS:  # W&B shows a run's settings itself
            return
        if row["step"] <= self.seen.get(kind, -1):
            return
        payload: Row = dict(numbers(row, details, declared)) | {"global_step": row["step"], "epoch": row.get("epoch")}
        if details.get("examples"):
            payload[f"{kind}/{declared.samples}"] = self._table(details["examples"])
            payload[f"{kind}/{plural(declared.first('image'))}"] = [
                self.wandb.Image(film.poster, caption=f"{film.genres} | predicted: {film.predicted}")
                for film in details["examples"]
                if film.poster is not None
            ]
        if kind == "test" and details.get("per_genre"):
            label, rows = declared.label, [[name, its["f1"]] for name, its in details["per_genre"].items()]
            bars = self.wandb.plot.bar(self.wandb.Table([label, "F1"], rows), label, "F1", title=f"F1 by {label}, test")
            payload[f"test/f1_by_{label}"] = bars
        self.run.log(payload)

    def _table(self, films: list[Example]) -> Any:
        declared = self.declared
        inputs = (declared.first("image"), declared.first("text"))
        table = self.wandb.Table([declared.sample, *inputs, plural(declared.label), "predicted"])
        for film in films:
            poster = None if film.poster is None else self.wandb.Image(film.poster)
            table.add_data(film.id, poster, film.overview, film.genres, film.predicted)
        return table

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    """The record in TensorBoard, which hides rows after the step that a run resumes from."""

    def __init__(self, folder: Path, resume_step: int, declared: Schema = TMDB) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.declared = declared
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1, flush_secs=10)

    def show(self, row: Row, details: Row) -> None:
        if row["kind"] == "end":
            self.writer.add_text("ended", row["reason"], row["step"])
        if row["kind"] == "settings":
            self.writer.add_text("settings", describe(row["changes"]), row["step"])
        if row["kind"] not in SCALAR_KINDS:
            return
        for name, value in numbers(row, details, self.declared).items():
            self.writer.add_scalar(name, value, row["step"])
        for film in details.get("examples") or ():
            text = f"{film.genres} | predicted: {film.predicted} | {film.overview or ''}"
            name = f"{row['kind']}_{self.declared.samples}/{film.id}"
            self.writer.add_text(name, text, row["step"])
            if film.poster is not None:
                self.writer.add_image(name, film.poster, row["step"], dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


def check_views(config: Config) -> None:
    """Raise ValueError if a configured view is not installed."""
    if config.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "tracking.tensorboard needs tensorboard, which is not installed: pip install 'genre_dist[tensorboard]'"
        )


def numbers(row: Row, details: Row, declared: Schema = TMDB) -> dict[str, float]:
    """The scalars of a row and of its evaluation's labels, by the names of their curves."""
    kind = row["kind"]
    scalars = {f"{kind}/{key}": value for key, value in row.items() if isinstance(value, int | float) if key != "epoch"}
    for key, values in row.items():
        if key.startswith("rank_"):
            scalars |= {f"ranks/{rank}/{key.removeprefix('rank_')}": value for rank, value in enumerate(values)}
    of_labels = f"{kind}_{plural(declared.label)}"
    for label, its in (details.get("per_genre") or {}).items():
        scalars |= {f"{of_labels}/{name}/{label}": its[name] for name in LABEL_SCALARS if its.get(name) is not None}
    return scalars


def job_type(model: ModelConfig) -> str:
    """W&B's job type of a run: text, poster, frozen, or end_to_end (also if it is partly frozen)."""
    return model.kind if model.kind in ("text", "poster", "frozen") else "end_to_end"


def _run_id(folder: Path) -> str:
    """The run's id in W&B, kept in its folder together with the folder's path: a copy gets an id of its own.

    Raises ValueError if the kept id is none.
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
    """Whether the same id is kept in another folder; one folder may have two paths."""
    with suppress(OSError):
        return _kept(other) == kept and not other.samefile(file)
    return False


def _kept(file: Path) -> str:
    """The text of a small file; "" if there is none."""
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
