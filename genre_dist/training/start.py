"""What a start finds in a run's folder: nothing yet, a checkpoint to go on from, or a run that is finished.

A run goes on as what it was: what decides how its weights are to be read is refused if it is asked for otherwise now,
other settings are told. What a run has cost, its record and its model, is never dropped without `run.overwrite`.
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
from genre_dist.training.model_files import FACTS, WEIGHTS, ModelFacts, check_model
from genre_dist.training.ranks import say
from genre_dist.training.stopping import StopRequest

_WAYS_OUT = "choose another run.dir, or pass --run.overwrite true"


class Start(NamedTuple):
    """From where, and as what, a run starts or goes on."""

    step: int
    """Steps already done."""
    config: Config
    """What config.yaml is to say."""
    changes: Changes
    """What is otherwise from here on."""


class _Found(NamedTuple):
    """What a run's folder holds."""

    config: Config
    saved: Saved | None = None
    damaged: list[str] = []  # noqa: RUF012 (never changed)
    changes: Changes = {}  # noqa: RUF012
    without_effect: Changes = {}  # noqa: RUF012
    finished_after: int | None = None


def resume(experiment: Experiment, folder: Path, stop: StopRequest) -> Start | None:
    """Prepare the run's folder and load its newest whole checkpoint; None if the run is finished, and nothing changed.

    Raises ValueError, on all ranks, if what is there cannot be continued as this experiment.
    """
    world, total = experiment.world, experiment.total_steps
    found: _Found = world.broadcast(on_first(world, partial(_find, experiment, folder)))
    for name in found.damaged:
        say(world, f"{folder / 'checkpoints' / name} is damaged or incomplete and is passed over")
    if found.finished_after is not None:
        without = found.changes | found.without_effect
        say(
            world,
            f"{folder} is finished: all {found.finished_after} steps are done (--run.overwrite true starts it again)"
            + (f"; asked for now, without effect: {describe(without)}" if without else ""),
        )
        return None
    if found.saved is None:
        say(world, summary(experiment))
    else:
        # the optimizer's states are those of what the last step trained
        experiment.freeze(max(0, found.saved.step - 1))
        load_checkpoint(found.saved, experiment.state, world)
        say(world, f"continuing {folder} after step {found.saved.step} of {total} ({found.saved.path.name})")
        if found.without_effect:
            say(world, f"without effect, the weights are those of the run: {describe(found.without_effect)}")
    on_first(world, partial(_begin, found, folder, stop))  # now: a run that is refused leaves the folder as it was
    return Start(0 if found.saved is None else found.saved.step, found.config, found.changes)


def _begin(found: _Found, folder: Path, stop: StopRequest) -> None:
    for place in (folder, folder / "checkpoints"):
        remove_leftovers(place)
    trust_code_of(found.config)
    if found.saved is None:  # of a run that goes on, it is written after the record of what has changed
        save_config(found.config, folder / CONFIG)
    stop.forget_left_over()


def _find(experiment: Experiment, folder: Path) -> _Found:
    """Look into the folder, made and emptied if asked to. Raises ValueError for what stands in the way."""
    _prepare_folder(folder, experiment.config.run.overwrite)
    saved, damaged = newest_checkpoint(folder / "checkpoints", experiment.world.progress)
    read_best(folder / "checkpoints")  # a damaged note is told here, to all ranks
    model = _model_of(folder, saved)
    if saved is None and model is None:
        _refuse_all_damaged(folder, damaged)
        return _Found(_config_to_keep(experiment, {}), damaged=damaged)
    before = _trained_before(folder, saved, model)
    config = _config_to_keep(experiment, before)
    _refuse_another_run(experiment, folder, saved, model, before)
    told = changes(before, trained_with(config), "told")
    found = _Found(config, saved, damaged, told, changes(before, trained_with(experiment.config), "start"))
    if _is_finished(experiment, folder, saved, model):
        return found._replace(finished_after=model.step if model else None)
    if saved is None:
        raise ValueError(
            f"{folder} has a model of {model.step if model else 0} steps and no checkpoint to go on from: bring its "
            f"checkpoints back, start another run from its {WEIGHTS}, {_WAYS_OUT}"
        )
    return found


def _model_of(folder: Path, saved: Saved | None) -> ModelFacts | None:
    """The model of a finished run. None if there is none, or it is damaged and can be written anew from a checkpoint.

    Raises ValueError if it is damaged and cannot.
    """
    if not (folder / FACTS).is_file():
        return None
    try:
        return check_model(folder)
    except ValueError as error:
        if saved is None:
            raise
        print(f"{printable(error)}: it is written anew after {saved.path.name}", file=sys.stderr, flush=True)
        return None


def _prepare_folder(folder: Path, overwrite: bool) -> None:
    """Make the run's folder, an earlier run in it deleted if asked to, but for the lock that this start holds.

    Its config.yaml goes last: a deletion that was cut short is one of a run still.
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
    """Raise ValueError if there are checkpoints and none is whole: to begin again would cost all that was done.

    What a kill left while it was written does not count: it was never one.
    """
    if lost := [name for name in damaged if not name.endswith(".partial")]:
        raise ValueError(
            f"{folder / 'checkpoints'}: no checkpoint is whole ({', '.join(lost[:3])} damaged): copy them again, "
            f"{_WAYS_OUT} to begin at step 0"
        )


def _trained_before(folder: Path, saved: Saved | None, model: ModelFacts | None) -> dict[str, Any]:
    """The settings that a run was trained with so far. What older versions wrote has only its config.yaml to tell."""
    noted = saved.facts.get("settings") if saved is not None else None
    if isinstance(noted, dict):
        return noted
    if model is not None and model.settings:
        return model.settings
    return trained_with(load_config(folder / CONFIG)) if (folder / CONFIG).is_file() else {}


def _config_to_keep(experiment: Experiment, before: dict[str, Any]) -> Config:
    """The configuration as config.yaml is to hold it: with the weights that the run began with.

    A copy that deletes the run it belongs to would be a trap; another GPU may take other micro-batches.
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
    experiment: Experiment, folder: Path, saved: Saved | None, model: ModelFacts | None, before: dict[str, Any]
) -> None:
    """Raise ValueError if what is in the folder cannot be continued as this experiment."""
    facts: dict[str, Any] = {} if model is None else {"data_fingerprint": model.data_fingerprint}
    if saved is not None:
        facts = saved.facts
    for key, value in experiment.stream.identity().items():
        if (saved is not None or key in facts) and facts.get(key) != value:
            raise ValueError(
                f"{folder} was trained with {key}={facts.get(key)}, now it is {value}: continue with the same "
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


def _is_finished(experiment: Experiment, folder: Path, saved: Saved | None, model: ModelFacts | None) -> bool:
    """Whether the run has come to its end, by its number of steps or early: its model tells, whatever lies beside."""
    if model is None or (saved is not None and saved.step > model.step):
        return False
    train = experiment.config.train
    return model.step == experiment.total_steps or why_stop(read_rows(folder / RECORD), train) is not None
