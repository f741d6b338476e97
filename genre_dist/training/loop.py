"""A whole run, from shards to a trained and evaluated model: the story of training, read from top to bottom."""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genre_dist.config import Config
from genre_dist.config.continuing import trained_with
from genre_dist.configfile import save_config
from genre_dist.parallel.launcher import is_launched
from genre_dist.parallel.world import LONGEST_ALLOWED, World
from genre_dist.printable import printable
from genre_dist.stream.batch import Batch, Seconds
from genre_dist.stream.device import Pixels, to_device, training_pixels
from genre_dist.stream.order import hash64
from genre_dist.training.backoff import Backoff, may_split, planned_config
from genre_dist.training.collecting import Collector
from genre_dist.training.determinism import deterministic
from genre_dist.training.early_stopping import why_stop
from genre_dist.training.ema import evaluated
from genre_dist.training.encodings import with_encodings
from genre_dist.training.experiment import Experiment, set_up
from genre_dist.training.freezing import follow_freezing
from genre_dist.training.model_files import save_model
from genre_dist.training.profiling import Profiler
from genre_dist.training.ranks import Meter, gather_ranks, say
from genre_dist.training.resuming import CONFIG, Start, on_first, resume
from genre_dist.training.saving import Saver
from genre_dist.training.schedule import lr_factor, set_learning_rates
from genre_dist.training.step import StepResult, train_step
from genre_dist.training.stopping import PREEMPTED, Stopped, StopRequest, heed_while_waiting
from genre_dist.training.tracking import Record, open_record
from genre_dist.training.watch import Watch

Evaluator = Callable[[Experiment, str, StopRequest, bool], dict[str, Any] | None]
"""(experiment, split, stop, final) -> the split's metrics on rank 0, with its files written if it is the final one."""


def run_training(config: Config, world: World, evaluate: Evaluator) -> int:
    """Train, or continue, the run in `config.run.dir`; returns the exit code: 0, or PREEMPTED if asked to stop early.

    Raises ValueError for what the user has to change, and for a loss that is not finite.
    """
    stop = StopRequest(Path(config.run.dir), config.run.max_minutes)  # from here on: setting up may take minutes
    try:
        return _set_up_and_train(config, world, stop, evaluate)
    except Stopped:
        stop.is_heeded = is_launched()
        return PREEMPTED
    finally:
        stop.close()


def _set_up_and_train(config: Config, world: World, stop: StopRequest, evaluate: Evaluator) -> int:
    experiment = set_up(planned_config(config, world), world, may_split(config, world))
    folder = Path(config.run.dir)
    start = resume(experiment, folder, stop)
    if start is None:
        return 0
    record = on_first(world, partial(_open_record, experiment, folder, start))
    facts = experiment.stream.identity() | {"settings": trained_with(start.config)}
    saver = Saver(folder / "checkpoints", experiment.strategy, world, config.checkpoint, facts)
    try:
        experiment, told = with_encodings(experiment, stop)
        if told:
            say(world, told)
        with deterministic(config.train.deterministic):
            done = _train(experiment, folder, start.step, record, stop, saver, evaluate)
            _finish(experiment, folder, done, record, stop, saver, evaluate)
    finally:
        saver.close()
        if record is not None:
            record.close()
    return 0


def _open_record(experiment: Experiment, folder: Path, start: Start) -> Record:
    """The run's record, what has changed in it, and then in config.yaml."""
    record = open_record(experiment.config, folder, start.step, experiment.total_steps)
    if start.changes:
        epoch = start.step // experiment.stream.steps_per_epoch
        record.write({"kind": "settings", "step": start.step + 1, "epoch": epoch, "changes": start.changes})
    save_config(start.config, folder / CONFIG)
    return record


def _train(
    experiment: Experiment,
    folder: Path,
    start: int,
    record: Record | None,
    stop: StopRequest,
    saver: Saver,
    evaluate: Evaluator,
) -> int:
    """Steps `start` to the last: train, record, evaluate, save. Returns the steps done: all, or fewer if stopped early.

    Raises Stopped after saving if asked to stop.
    """
    config, world, stream, strategy = experiment.config, experiment.world, experiment.stream, experiment.strategy
    if start >= experiment.total_steps:
        return start
    evaluate_every = config.train.eval_every_steps or stream.steps_per_epoch
    due = record is not None and start > 0 and start % evaluate_every == 0 and start not in record.validated
    # the run was stopped before or in this evaluation
    if world.any(due) and not _validate(
        experiment, record, start, (start - 1) // stream.steps_per_epoch, stop, saver, evaluate
    ):
        raise Stopped
    if start > 0 and _why_end(experiment, record):
        return start
    watch, meter, profiler = Watch(experiment, record), Meter(world.device), Profiler(config.train, folder, world)
    backoff = Backoff(experiment, folder, partial(profiler.snapshot, "out-of-memory"))
    experiment.model.train()
    heeding = partial(heed_while_waiting, stop.requested, world.size == 1)
    with closing(stream.batches(start, heeding)) as batches, profiler.watching(), Collector() as collector:
        for position in range(start, experiment.total_steps):
            asked = time.monotonic()
            try:
                micro_batches = next(batches)
            except Stopped:  # alone, and its readers are silent
                if position > start:
                    watch.flush()
                    _save(experiment, saver, position)
                    saver.wait()
                so_far = f"saved after step {position}" if position else "no step was done"
                say(world, f"asked to stop ({stop.reason}) while readers are silent: {so_far}")
                raise
            waited = time.monotonic() - asked
            epoch = position // stream.steps_per_epoch
            _freeze(experiment, position)
            profiler.before_step(position + 1)
            seed = int(hash64(config.run.seed, position, world.rank)[0] >> np.uint64(1))
            set_learning_rates(strategy.optimizer, lr_factor(position, experiment.total_steps, config.optim))
            if position == start and experiment.compiling.wanted:
                say(world, "compiling the poster encoder's blocks: 1 to 3 minutes, once")
                world.allow(LONGEST_ALLOWED)
            pixels = training_pixels(config.data, config.run.seed, epoch)
            take = partial(_take, experiment, pixels, stop.requested(), saver.asks())
            result = backoff.step(micro_batches, take, seed)
            _note_faults(folder, micro_batches)
            done = position + 1
            profiler.after_step(done)
            collector.after_step(done)
            if position == start:
                saver.prepare()  # the optimizer's states are there from now on
            if done % config.tracking.ranks_every_steps == 0:
                watch.ranks = gather_ranks(meter, world)
            reading = Seconds(*map(sum, zip(*(batch.seconds for batch in micro_batches), strict=True)))
            stopping = watch.step(done, epoch, result, waited, reading)
            last = done == experiment.total_steps
            if done % evaluate_every == 0 and not last and not stopping:
                watch.flush()
                with collector.as_usual():
                    stopping = not _validate(experiment, record, done, epoch, stop, saver, evaluate)
                last = not stopping and _why_end(experiment, record) is not None
                watch.restart_clock()
            if last or stopping or watch.save_asked or saver.due(done):
                watch.flush()
                began = time.monotonic()
                _save(experiment, saver, done)
                if last or stopping:
                    saver.wait()
                watch.stood_still += time.monotonic() - began
                watch.save_asked = False
                watch.restart_clock()
            if stopping and not last:
                say(world, f"asked to stop ({stop.reason or 'by another rank'}): saved after step {done}")
                raise Stopped
            if last:
                break
    return done


def _take(
    experiment: Experiment,
    pixels: Pixels,
    stop: bool,
    save: bool,
    micro_batches: list[Batch],
    samples: int,
    **careful: Any,
) -> StepResult:
    """A step of micro-batches of up to so many samples."""
    return train_step(
        experiment.strategy,
        micro_batches,
        partial(to_device, device=experiment.world.device, pixels=pixels, size=experiment.training_size(samples)),
        experiment.autocast,
        experiment.world,
        experiment.config.optim.clip_norm,
        stop,
        save,
        experiment.loss,
        **careful,
    )


def _freeze(experiment: Experiment, position: int) -> None:
    follow_freezing(
        experiment.model,
        experiment.strategy,
        experiment.config.model,
        position,
        experiment.stream.steps_per_epoch,
    )


def _why_end(experiment: Experiment, record: Record | None) -> str | None:
    """Why the run should end early, if it should: rank 0's word, on every rank."""
    train = experiment.config.train
    if train.stop_metric is None:
        return None
    return experiment.world.broadcast(None if record is None else why_stop(record.kept, train))


def _validate(
    experiment: Experiment,
    record: Record | None,
    done: int,
    epoch: int,
    stop: StopRequest,
    saver: Saver,
    evaluate: Evaluator,
) -> bool:
    """Evaluate the val split into the record; False if it was given up because somebody asked to stop."""
    if experiment.manifest.samples("val", experiment.config.model.members) == 0:
        return True
    experiment.strategy.sync_buffers()
    try:
        told = _evaluate(experiment, evaluate, "val", stop, False)
    except Stopped:
        return False
    if record is not None and told is not None:
        record.write(_row("val", done, epoch, told), told)
    saver.note_evaluation(done, told)
    return True


def _evaluate(
    experiment: Experiment, evaluate: Evaluator, split: str, stop: StopRequest, final: bool
) -> dict[str, Any] | None:
    """Evaluate a split with the weights that are exported; its first batch may have to be compiled."""
    if experiment.compiling.wanted:
        experiment.world.allow(LONGEST_ALLOWED)
    with evaluated(experiment.strategy):
        return evaluate(experiment, split, stop, final)


def _row(kind: str, step: int, epoch: int, told: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "step": step, "epoch": epoch, "data_wait": 0.0} | {
        key: value for key, value in told.items() if key not in ("per_genre", "films_shown", "split", "threshold")
    }


def _save(experiment: Experiment, saver: Saver, done: int) -> None:
    """Raises ValueError, and writes nothing, if a weight is not finite: such a run could not be continued."""
    if experiment.world.any(not experiment.strategy.is_finite()):
        raise ValueError(
            f"after step {done} some weights are not finite; stopped on all ranks, checkpoints hold earlier steps "
            "only. Lower the learning rates or lengthen optim.warmup_steps. Films of the step: "
            + " ".join(map(str, experiment.stream.step_ids(done - 1)))
        )
    saver.save(done)


def _finish(
    experiment: Experiment,
    folder: Path,
    done: int,
    record: Record | None,
    stop: StopRequest,
    saver: Saver,
    evaluate: Evaluator,
) -> None:
    """The end of a run: evaluate val and test, write their files, the weights and what is needed to use them."""
    world = experiment.world
    epoch = (done - 1) // experiment.stream.steps_per_epoch
    experiment.strategy.sync_buffers()
    for split in ("val", "test"):
        if experiment.manifest.samples(split, experiment.config.model.members) == 0:
            say(world, f"no film of the {split} split has what the model needs; not evaluated")
            continue
        told = _evaluate(experiment, evaluate, split, stop, True)
        if record is not None and told is not None:
            record.write(_row(split, done, epoch, told), told)
        if split == "val":
            saver.note_evaluation(done, told)
    if record is not None and done < experiment.total_steps:
        reason = why_stop(record.kept, experiment.config.train)
        record.write({"kind": "end", "step": done, "epoch": epoch, "reason": reason})
    weights = experiment.strategy.weights()
    on_first(world, partial(save_model, folder, weights, experiment.manifest, done, saver.facts["settings"]))
    say(world, f"finished {folder}: model.safetensors, metrics.jsonl, metrics-val.json, metrics-test.json")


def _note_faults(folder: Path, micro_batches: list[Batch]) -> None:
    """Name samples that could not be read, in the run's faults.log and on stderr; each rank its own."""
    lines = [printable(fault) for batch in micro_batches for fault in batch.faults]
    if lines:
        for line in lines:
            print(f"warning: left out of training: {line}", file=sys.stderr, flush=True)
        try:
            with open(folder / "faults.log", "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:  # they are told above: no reason to stop
            print(f"warning: {folder / 'faults.log'} lacks them: {error.strerror}", file=sys.stderr, flush=True)
