"""Starting in a run's folder: it is empty, holds a checkpoint to resume, or holds a finished run.

A resumed run refuses changed settings that decide how its weights are read; other changes are recorded. The record and
the model of a run are never deleted without `run.overwrite`.
"""

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from genre_dist.atomic import remove_leftovers
from genre_dist.config import Config
from genre_dist.config.continuing import Changes, changes, describe, trained_with
from genre_dist.config.files import load_config, save_config
from genre_dist.config.run import CONFIG
from genre_dist.config.trust import trust_code_of
from genre_dist.lock import FILE as LOCK
from genre_dist.lock import holds_files
from genre_dist.parallel.launcher import EXIT_CODE
from genre_dist.parallel.world import on_first
from genre_dist.printable import printable
from genre_dist.training.checkpoint import Saved, load_checkpoint, newest_checkpoint
from genre_dist.training.checkpoint_manager import read_best
from genre_dist.training.early_stopping import why_stop
from genre_dist.training.experiment import Experiment, summary
from genre_dist.training.metrics_log import RECORD, read_rows
from genre_dist.training.model_files import METADATA, WEIGHTS, ModelMetadata, check_model, save_text_encoder
from genre_dist.training.ranks import say
from genre_dist.training.stopping import StopRequest

_WAYS_OUT = "choose another run.dir, or pass --run.overwrite true"


class Start(NamedTuple):
    """The step and the configuration from which a run starts or resumes."""

    step: int
    """Steps already done."""
    config: Config
    """The content for config.yaml."""
    changes: Changes
    """Settings that differ from here on."""


class _Contents(NamedTuple):
    """The contents of a run's folder."""

    config: Config
    saved: Saved | None = None
    damaged: list[str] = []  # noqa: RUF012 (never changed)
    changes: Changes = {}  # noqa: RUF012
    without_effect: Changes = {}  # noqa: RUF012
    finished_after: int | None = None


def resume(experiment: Experiment, folder: Path, stop: StopRequest) -> Start | None:
    """Prepare the run's folder and load its newest whole checkpoint; return None for a finished run, left untouched.

    Raises ValueError, on all ranks, if the run in the folder cannot be continued as this experiment.
    """
    world, total = experiment.world, experiment.total_steps
    contents: _Contents = world.broadcast(on_first(world, partial(_inspect, experiment, folder)))
    for name in contents.damaged:
        say(world, f"{folder / 'checkpoints' / name} is damaged or incomplete and is passed over")
    if contents.finished_after is not None:
        without = contents.changes | contents.without_effect
        say(
            world,
            f"{folder} is finished: all {contents.finished_after} steps are done (--run.overwrite true starts it again)"
            + (f"; asked for now, without effect: {describe(without)}" if without else ""),
        )
        return None
    if contents.saved is None:
        say(world, summary(experiment))
    else:
        # the checkpoint has optimizer states only for the parameters that its last step trained
        experiment.freeze(max(0, contents.saved.step - 1))
        load_checkpoint(contents.saved, experiment.state, world)
        say(world, f"continuing {folder} after step {contents.saved.step} of {total} ({contents.saved.path.name})")
        if contents.without_effect:
            say(world, f"without effect, the weights are those of the run: {describe(contents.without_effect)}")
    begin = partial(_begin, experiment, contents, folder, stop)
    on_first(world, begin)  # only now: a refused run leaves the folder untouched
    return Start(0 if contents.saved is None else contents.saved.step, contents.config, contents.changes)


def _begin(experiment: Experiment, contents: _Contents, folder: Path, stop: StopRequest) -> None:
    for directory in (folder, folder / "checkpoints"):
        remove_leftovers(directory)
    trust_code_of(contents.config)
    save_text_encoder(folder, experiment.model)
    if contents.saved is None:  # a resumed run writes it after the record of the changes
        save_config(contents.config, folder / CONFIG)
    stop.forget_left_over()


def _inspect(experiment: Experiment, folder: Path) -> _Contents:
    """Make the folder (or empty it if asked to) and read it. Raises ValueError if the run cannot go on there."""
    _prepare_folder(folder, experiment.config.run.overwrite)
    saved, damaged = newest_checkpoint(folder / "checkpoints", experiment.world.progress)
    read_best(folder / "checkpoints")  # raises for a damaged note, here on all ranks
    model = _model_of(folder, saved)
    if saved is None and model is None:
        _refuse_all_damaged(folder, damaged)
        return _Contents(_config_to_keep(experiment, {}), damaged=damaged)
    before = _trained_before(folder, saved, model)
    config = _config_to_keep(experiment, before)
    _refuse_another_run(experiment, folder, saved, model, before)
    recorded = changes(before, trained_with(config), "recorded")
    contents = _Contents(config, saved, damaged, recorded, changes(before, trained_with(experiment.config), "start"))
    if _is_finished(experiment, folder, saved, model):
        return contents._replace(finished_after=model.step if model else None)
    if saved is None:
        raise ValueError(
            f"{folder} has a model of {model.step if model else 0} steps and no checkpoint to go on from: bring its "
            f"checkpoints back, start another run from its {WEIGHTS}, {_WAYS_OUT}"
        )
    return contents


def _model_of(folder: Path, saved: Saved | None) -> ModelMetadata | None:
    """The model of a finished run; None without one, or if a checkpoint can replace a damaged one.

    Raises ValueError if the model is damaged and there is no checkpoint.
    """
    if not (folder / METADATA).is_file():
        return None
    try:
        return check_model(folder)
    except ValueError as error:
        if saved is None:
            raise
        print(f"{printable(error)}: it is written anew after {saved.path.name}", file=sys.stderr, flush=True)
        return None


def _prepare_folder(folder: Path, overwrite: bool) -> None:
    """Make the run's folder; if asked to, delete an earlier run in it, except the lock that this start holds.

    Its config.yaml is deleted last: after a deletion that was cut short the folder still counts as a run.
    """
    try:
        if overwrite and holds_files(folder, beside=(EXIT_CODE,)):
            if not (folder / CONFIG).is_file():
                raise ValueError(f"{folder} is not empty and holds no run: --run.overwrite deletes nothing else")
            for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run.dir={folder} cannot be used: {error}") from None


def _refuse_all_damaged(folder: Path, damaged: list[str]) -> None:
    """Raise ValueError if there are checkpoints and none is whole: starting again would lose all steps.

    Files of a save that was killed do not count.
    """
    if lost := [name for name in damaged if not name.endswith(".partial")]:
        raise ValueError(
            f"{folder / 'checkpoints'}: no checkpoint is whole ({', '.join(lost[:3])} damaged): copy them again, "
            f"{_WAYS_OUT} to begin at step 0"
        )


def _trained_before(folder: Path, saved: Saved | None, model: ModelMetadata | None) -> dict[str, Any]:
    """The settings that a run was trained with so far; runs of older versions have them in config.yaml only."""
    noted = saved.metadata.get("settings") if saved is not None else None
    if isinstance(noted, dict):
        return noted
    if model is not None and model.settings:
        return model.settings
    return trained_with(load_config(folder / CONFIG)) if (folder / CONFIG).is_file() else {}


def _config_to_keep(experiment: Experiment, before: dict[str, Any]) -> Config:
    """The configuration for config.yaml, with the weights that the run began with.

    `run.overwrite` is reset, so that training from the copy does not delete its own run; micro-batches that were
    planned for this GPU are `auto` again, as another GPU may fit others.
    """
    config = experiment.config
    text, poster = config.model.text, config.model.poster
    return replace(
        config,
        run=replace(config.run, overwrite=False),
        data=replace(config.data, micro_batch="auto") if experiment.compute.splits else config.data,
        model=replace(
            config.model,
            text=replace(text, weights=before.get("model.text.weights", text.weights)),
            poster=replace(poster, weights=before.get("model.poster.weights", poster.weights)),
        ),
    )


def _refuse_another_run(
    experiment: Experiment, folder: Path, saved: Saved | None, model: ModelMetadata | None, before: dict[str, Any]
) -> None:
    """Raise ValueError if the run in the folder cannot be continued as this experiment."""
    metadata: dict[str, Any] = {} if model is None else {"data_fingerprint": model.data_fingerprint}
    if saved is not None:
        metadata = saved.metadata
    for key, value in experiment.stream.identity().items():
        if (saved is not None or key in metadata) and metadata.get(key) != value:
            raise ValueError(
                f"{folder} was trained with {key}={metadata.get(key)}, now it is {value}: continue with the same "
                f"data and order, {_WAYS_OUT}"
            )
    if changed := changes(before, trained_with(experiment.config), "fixed"):
        where = folder if saved is None else saved.path
        raise ValueError(
            f"{where} cannot go on with {describe(changed)}: its weights would mean something else. Continue with the "
            f"same, {_WAYS_OUT}"
        )
    done = max(0 if saved is None else saved.step, 0 if model is None else model.step)
    if done > experiment.total_steps:
        raise ValueError(
            f"{folder} has done {done} steps, more than the {experiment.total_steps} asked for now: ask for as many or "
            f"more, {_WAYS_OUT}"
        )


def _is_finished(experiment: Experiment, folder: Path, saved: Saved | None, model: ModelMetadata | None) -> bool:
    """Whether the run's model is that of its last step, by number of steps or by early stopping."""
    if model is None or (saved is not None and saved.step > model.step):
        return False
    train = experiment.config.train
    return model.step == experiment.total_steps or why_stop(read_rows(folder / RECORD), train) is not None
