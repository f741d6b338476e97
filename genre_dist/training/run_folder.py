"""The files of a run's folder: record, checkpoints, faults, evaluations and, at the end, the model."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from genre_dist.config.continuing import trained_with
from genre_dist.config.files import save_config
from genre_dist.parallel.world import on_first
from genre_dist.printable import printable
from genre_dist.schema import TMDB
from genre_dist.stream.batch import Batch
from genre_dist.training.checkpoint_manager import CheckpointManager
from genre_dist.training.early_stopping import why_stop
from genre_dist.training.evaluation import Evaluation, print_evaluation, save_evaluation
from genre_dist.training.examples import example_films
from genre_dist.training.experiment import Experiment, open_split
from genre_dist.training.metrics_log import MetricsLog, open_record
from genre_dist.training.model_files import save_model
from genre_dist.training.ranks import say
from genre_dist.training.start import CONFIG, Start


class RunFolder:
    """The folder of a run in training, open until the run ends or stops. Every rank has one; rank 0 has the record."""

    def __init__(self, experiment: Experiment, folder: Path, start: Start) -> None:
        self.experiment, self.folder, self.world = experiment, folder, experiment.world
        self.settings = trained_with(start.config)
        self.record: MetricsLog | None = on_first(self.world, partial(self._open_record, start))
        metadata = experiment.stream.identity() | {"settings": self.settings}
        checkpoints = experiment.config.checkpoint
        self.saver = CheckpointManager(folder / "checkpoints", experiment.state, self.world, checkpoints, metadata)

    def _open_record(self, start: Start) -> MetricsLog:
        """Open the record and write the changed settings into it, then into config.yaml."""
        experiment = self.experiment
        declared = experiment.manifest.declared
        record = open_record(experiment.config, self.folder, start.step, experiment.total_steps, declared)
        if start.changes:
            record.write(
                {
                    "kind": "settings",
                    "step": start.step + 1,
                    "epoch": self.experiment.epoch(start.step),
                    "changes": start.changes,
                }
            )
        save_config(start.config, self.folder / CONFIG)
        return record

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.saver.close()
        if self.record is not None:
            self.record.close()

    def evaluates_after(self, step: int) -> bool:
        """Whether the val split is evaluated after a step."""
        return step % (self.experiment.config.train.eval_every_steps or self.experiment.stream.steps_per_epoch) == 0

    def lacks_evaluation(self, step: int) -> bool:
        """Whether the val split should have been evaluated after a step and was not; all ranks get the same answer."""
        due = self.record is not None and self.evaluates_after(step) and step not in self.record.validated
        return self.world.any(due)

    def evaluate(self, split: str, step: int, stop: Callable[[], bool], final: bool = False) -> None:
        """Evaluate a split after a step, with the weights that are exported, into the record and, if final, into files.

        Raises Stopped if `stop` returns True on any rank. A split without samples for the model is skipped.
        """
        experiment, declared = self.experiment, self.experiment.manifest.declared
        model = experiment.config.model
        if experiment.manifest.samples(split, model.members(declared), model.learns_missing) == 0:
            if final:
                say(self.world, f"no {declared.sample} of the {split} split has what the model needs; not evaluated")
            return
        experiment.allow_compiling()
        with experiment.state.evaluated():
            evaluation = experiment.evaluator.evaluate(experiment.encodings or experiment.manifest, split, stop)
        metrics = None
        if evaluation is not None:
            metrics = evaluation.metrics | self._examples(evaluation)
            if final:
                print_evaluation(save_evaluation(evaluation, self.folder), declared)
        if self.record is not None and metrics is not None:
            left_out = ("per_genre", "by_fields", "confusion", "examples", "split", "threshold")
            row = {"kind": split, "step": step, "epoch": self.experiment.epoch(step - 1), "data_wait": 0.0}
            row |= {key: value for key, value in metrics.items() if key not in left_out}
            if declared != TMDB:
                row["samples"] = row.pop("films")
            self.record.write(row, metrics)
        if split == "val":
            self.saver.note_evaluation(step, metrics)

    def _examples(self, evaluation: Evaluation) -> dict[str, Any]:
        """A few samples of an evaluation with image and text, if W&B or TensorBoard are to show some."""
        tracking, config = self.experiment.config.tracking, self.experiment.config
        if tracking.films == 0 or (tracking.wandb == "off" and not tracking.tensorboard):
            return {}
        reader = open_split(config, self.experiment.manifest, evaluation.split)
        return {"examples": example_films(evaluation, reader, tracking.films)}

    def why_end(self) -> str | None:
        """Why the run should end early, or None; rank 0 decides for every rank."""
        train = self.experiment.config.train
        if train.stop_metric is None:
            return None
        return self.world.broadcast(None if self.record is None else why_stop(self.record.kept, train))

    def save(self, step: int, wait: bool) -> None:
        """Save a checkpoint; with `wait`, return only when it is whole.

        Raises ValueError, and writes nothing, if a weight is not finite: such a run could not be continued.
        """
        if self.world.any(not self.experiment.strategy.is_finite()):
            raise ValueError(
                f"after step {step} some weights are not finite; stopped on all ranks, checkpoints hold earlier steps "
                "only. Lower the learning rates or lengthen optim.warmup_steps. "
                f"{self.experiment.manifest.declared.samples.capitalize()} of the step: "
                + " ".join(map(str, self.experiment.stream.step_ids(step - 1)))
            )
        self.saver.save(step)
        if wait:
            self.saver.wait()

    def export(self, step: int) -> None:
        """Write the model after the last step, and why the run ended early if it did."""
        if self.record is not None and step < self.experiment.total_steps:
            reason = why_stop(self.record.kept, self.experiment.config.train)
            self.record.write({"kind": "end", "step": step, "epoch": self.experiment.epoch(step - 1), "reason": reason})
        weights = self.experiment.state.weights()
        on_first(self.world, partial(save_model, self.folder, weights, self.experiment.manifest, step, self.settings))
        files = "model.safetensors, metrics.jsonl, metrics-val.json, metrics-test.json"
        say(self.world, f"finished {self.folder}: {files}")

    def note_faults(self, micro_batches: list[Batch]) -> None:
        """Name samples that could not be read, in the run's faults.log and on stderr; each rank its own."""
        lines = [printable(fault) for batch in micro_batches for fault in batch.faults]
        if lines:
            for line in lines:
                print(f"warning: left out of training: {line}", file=sys.stderr, flush=True)
            log = self.folder / "faults.log"
            try:
                with open(log, "a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
            except OSError as error:  # stderr has them: no reason to stop
                print(f"warning: {log} lacks them: {error.strerror}", file=sys.stderr, flush=True)
