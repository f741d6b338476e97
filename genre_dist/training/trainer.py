"""Training, read from top to bottom: `Trainer(config).fit()`, or its verbs in a loop of your own.

with joined(config) as world, Trainer(config, world) as trainer:
    for micro_batches in trainer.batches():
        step = trainer.step(micro_batches)
        trainer.log(step)
        trainer.save_if_due()
"""

import time
from collections.abc import Generator
from contextlib import ExitStack, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from genre_dist.config import Config
from genre_dist.parallel.launcher import PREEMPTED, note_end
from genre_dist.parallel.one_run import joined
from genre_dist.parallel.world import World
from genre_dist.stream.batch import Batch
from genre_dist.training.backoff import Backoff, may_split, planned_config
from genre_dist.training.determinism import deterministic
from genre_dist.training.encode_once import with_encodings
from genre_dist.training.experiment import set_up
from genre_dist.training.garbage import GarbageCollector
from genre_dist.training.profiling import Profiler
from genre_dist.training.ranks import say
from genre_dist.training.run_folder import RunFolder
from genre_dist.training.schedule import dropout_seed, lr_factor, set_learning_rates
from genre_dist.training.start import resume
from genre_dist.training.step import Figures, agree
from genre_dist.training.step_log import Asked, Step, StepLog
from genre_dist.training.stopping import Stopped, StopRequest, heed_while_waiting


class Trainer:
    """Trains the run of a configuration, or resumes it. Every rank has one and calls its methods in the same order.

    Raises ValueError for what the user has to change; Stopped, after a checkpoint, if somebody asks to stop.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.config, self._world = config, world
        self.done, self.asked, self.ends_early = 0, Asked(), False  # steps done; requests of any rank

    def fit(self) -> int:
        """Join the other ranks if need be, train and evaluate; return 0, or PREEMPTED if somebody asked to stop."""
        with joined(self.config) if self._world is None else nullcontext(self._world) as self._world:
            code = PREEMPTED
            with suppress(Stopped), self:
                if not self.is_finished:
                    self.train()
                    self.finish()
                code = 0
            note_end(Path(self.config.run.dir), code)  # now: torchrun ends all ranks once one exits
        return code

    def __enter__(self) -> Self:
        """Set up everything before the first step; a resumed run gets its weights and its record back."""
        assert self._world is not None, "the ranks have not met: see genre_dist.parallel.one_run.joined"
        self.world, folder = self._world, Path(self.config.run.dir)
        with ExitStack() as exits:  # set-up may take minutes: requests to stop count from here on
            self.stop = exits.enter_context(StopRequest(folder, self.config.run.max_minutes))
            config = planned_config(self.config, self.world)
            experiment = set_up(config, self.world, may_split(self.config, self.world))
            start = resume(experiment, folder, self.stop)
            self.config, self.is_finished, self.ends_early = experiment.config, start is None, start is None
            if start is not None:
                self.done = self.began = start.step
                experiment = with_encodings(experiment, self.stop)
                self.run = exits.enter_context(RunFolder(experiment, folder, start))
                self.step_log = StepLog(experiment, self.run.record)
                self.profiler, self.collector = Profiler(config.train, folder, self.world), GarbageCollector()
                self.backoff = Backoff(experiment, folder, partial(self.profiler.snapshot, "out-of-memory"))
                exits.enter_context(deterministic(config.train.deterministic))
            self.experiment, self._exits = experiment, exits.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._exits.__exit__(kind, error, at)

    def train(self) -> None:
        """Take the steps that are left."""
        self.validate_if_missed()
        with closing(self.batches()) as batches, self.profiler.watching(), self.collector:
            for micro_batches in batches:
                step = self.step(micro_batches)
                self.log(step)
                self.validate_if_due()
                self.save_if_due()
                self.stop_if_asked()

    @property
    def is_over(self) -> bool:
        return self.ends_early or self.done >= self.experiment.total_steps

    def batches(self) -> Generator[list[Batch]]:
        """This rank's micro-batches of one step after another, until the last."""
        self.experiment.model.train()
        heeding = partial(heed_while_waiting, self.stop.requested, self.world.size == 1)
        with closing(self.experiment.stream.batches(self.done, heeding)) as batches:
            while not self.is_over:
                began = time.monotonic()
                try:
                    micro_batches = next(batches)
                except Stopped:  # a single rank was asked to stop while its readers are silent
                    self.asked |= Asked(stop=True)
                    if self.done > self.began:
                        self.save()
                    self.stop_if_asked()
                self.waited = time.monotonic() - began
                yield micro_batches

    def step(self, micro_batches: list[Batch]) -> Step:
        """Take the next step: forward and backward over its micro-batches, then one update of the weights."""
        experiment, number, is_first = self.experiment, self.done, self.done == self.began
        experiment.freeze(number)
        self.profiler.before_step(number + 1)
        set_learning_rates(experiment.strategy.optimizer, lr_factor(number, experiment.total_steps, self.config.optim))
        if is_first:
            experiment.allow_compiling("compiling the image encoder's blocks: under a minute, once")
        counts = agree(self.world, micro_batches, self.stop.requested(), self.run.saver.asks())
        seed = dropout_seed(self.config.run.seed, number, self.world.rank)
        result = self.backoff.step(micro_batches, partial(experiment.take, counts, number), seed)
        experiment.state.follow()
        self.done += 1
        self.profiler.after_step(self.done)
        self.collector.after_step(self.done)
        if is_first:
            self.run.saver.prepare()  # the optimizer's states exist after the first step
        return Step(self.done, Figures(result), self.waited, micro_batches)

    def log(self, step: Step) -> None:
        """Write a step's row into the record; on a GPU the previous step's, whose figures have arrived."""
        self.run.note_faults(step.micro_batches)
        self.asked |= self.step_log.add(step)

    def validate_if_missed(self) -> None:
        """Make up for an evaluation that an earlier start was stopped before or during."""
        if self.done > 0 and not self.is_over:
            if self.run.lacks_evaluation(self.done):
                self.validate()
            self.stop_if_asked()
            self.ends_early = self.run.why_end() is not None

    def validate_if_due(self) -> None:
        if self.run.evaluates_after(self.done) and not self.is_over and not self.asked.stop:
            self.asked |= self.step_log.flush()
            with self.collector.as_usual():
                self.validate()
            self.ends_early = not self.asked.stop and self.run.why_end() is not None
            self.step_log.restart_clock()

    def validate(self) -> None:
        """Evaluate the val split into the record; a request to stop ends the evaluation."""
        self.experiment.state.sync_buffers()
        try:
            self.run.evaluate("val", self.done, self.stop.interrupted)
        except Stopped:
            self.asked |= Asked(stop=True)

    def save_if_due(self) -> None:
        """Save after the last step, at the configured intervals, and if a rank asks to save or to stop."""
        if self.is_over or self.asked.stop or self.asked.save or self.run.saver.due(self.done):
            self.save()

    def save(self) -> None:
        self.asked |= self.step_log.flush()
        with self.step_log.standing_still():
            self.run.save(self.done, wait=self.is_over or self.asked.stop)
        self.asked = self.asked._replace(save=False)

    def stop_if_asked(self) -> None:
        if self.asked.stop and not self.is_over:
            saved = f"saved after step {self.done}" if self.done else "no step was done"
            say(self.world, f"asked to stop ({self.stop.reason or 'by another rank'}): {saved}")
            raise Stopped

    def finish(self) -> None:
        """Evaluate val and test and write their files, then export the model."""
        self.experiment.state.sync_buffers()
        for split in ("val", "test"):
            self.run.evaluate(split, self.done, self.stop.interrupted, final=True)
        self.run.export(self.done)
