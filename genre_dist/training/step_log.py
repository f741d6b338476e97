"""Steps become rows of the record; a loss that is not finite or too many bad samples stop the run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from genre_dist.planner.throughput import peak_flops, peak_memory_bytes
from genre_dist.stream.batch import Batch, Seconds
from genre_dist.training.experiment import Experiment
from genre_dist.training.metrics_log import MetricsLog
from genre_dist.training.ranks import Meter, gather_ranks
from genre_dist.training.step import Figures


class Step(NamedTuple):
    """A step that is queued on the device."""

    number: int
    """Counted from 1."""
    figures: Figures
    waited: float
    """Seconds that training waited for its samples."""
    micro_batches: list[Batch]

    @property
    def reading(self) -> Seconds:
        """What this rank's reader processes did for these samples."""
        return Seconds(*map(sum, zip(*(batch.seconds for batch in self.micro_batches), strict=True)))


class Asked(NamedTuple):
    """Requests of any rank to stop or save; all ranks know them once they read the figures of the step."""

    stop: bool = False
    save: bool = False

    def __or__(self, other: "Asked") -> "Asked":
        return Asked(self.stop or other.stop, self.save or other.save)


class StepLog:
    """Turns steps into rows of the record, on a GPU one step late so that the host never waits for the device.

    Raises ValueError for a loss that is not finite and for too many bad samples, on all ranks together since the
    numbers are sums over all ranks.
    """

    def __init__(self, experiment: Experiment, record: MetricsLog | None) -> None:
        self.experiment, self.record, self._meter = experiment, record, Meter(experiment.world.device)
        self._pending: tuple[Step, float] | None = None
        self._ranks: dict[str, list[float]] = {}  # for the next row
        self._stood_still = 0.0  # seconds that training waited for checkpoints since the last row
        self._bad: dict[int, int] = {}  # epoch -> samples that could not be read
        self._peak = peak_flops(experiment.world.device, experiment.compute.precision) * experiment.world.size
        self.restart_clock()

    def restart_clock(self) -> None:
        self._began = time.monotonic()

    def add(self, step: Step) -> Asked:
        """Note a step and write the previous one; on a CPU, where nothing runs ahead, write the step itself.

        Reading the previous step waits until it is done, while the device computes this one.
        """
        if step.number % self.experiment.config.tracking.ranks_every_steps == 0:
            self._ranks = gather_ranks(self._meter, self.experiment.world) or {}
        asked = self.flush()
        now = time.monotonic()
        self._pending, self._began = (step, now - self._began), now
        return self.flush() if self.experiment.world.device.type == "cpu" else asked

    def flush(self) -> Asked:
        """Write the pending step."""
        if self._pending is None:
            return Asked()
        (step, seconds), self._pending = self._pending, None
        return self._write(step, seconds)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """A context in which training waits for a checkpoint."""
        began = time.monotonic()
        yield
        self._stood_still += time.monotonic() - began
        self.restart_clock()

    def _write(self, step: Step, seconds: float) -> Asked:
        total, samples, bad, stopping, saving, norm = step.figures.read()
        loss = total / max(1.0, samples)
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise ValueError(self._not_finite(step.number, loss, norm))
        epoch = self.experiment.epoch(step.number - 1)
        self._check_bad(epoch, int(bad))
        asked = Asked(stopping > 0, saving > 0)
        if self.record is None or step.number % self.experiment.config.train.log_every_steps:
            return asked
        rates: dict[str, float] = {}  # of a part with several, the highest: that of its last layer
        for group in self.experiment.strategy.optimizer.param_groups:
            part = group["name"].partition(".")[0]
            rates[part] = max(group["lr"], rates.get(part, 0.0))
        self.record.write(
            {
                "kind": "train",
                "step": step.number,
                "epoch": epoch,
                "loss": loss,
                "grad_norm": norm,
                "samples": int(samples),
                "bad_samples": int(bad),
                "samples_per_second": samples / seconds,
                "step_seconds": seconds,
                "data_wait": min(1.0, step.waited / seconds),
                "read_seconds": step.reading.read,  # of this rank's reader processes together, in the background
                "decode_seconds": step.reading.decode,
                "reader_idle_seconds": step.reading.idle,  # waiting for a free slot: reading keeps up
                "checkpoint_seconds": self._stood_still,
                "mfu": self._mfu(samples / seconds),
                "memory_bytes": peak_memory_bytes(self.experiment.world.device),
                "ranks": self.experiment.world.size,
                "device": self.experiment.world.device.type,
                **{f"lr_{name}": rate for name, rate in rates.items()},
                **self._ranks,
            }
        )
        self._ranks, self._stood_still = {}, 0.0
        return asked

    def _check_bad(self, epoch: int, bad: int) -> None:
        self._bad[epoch] = self._bad.get(epoch, 0) + bad
        data = self.experiment.config.data
        if self._bad[epoch] > data.tolerated_bad(self.experiment.stream.reader.index.samples):
            raise ValueError(
                f"{self._bad[epoch]} samples of epoch {epoch} could not be read, more than data.max_bad_fraction="
                f"{data.max_bad_fraction} allows; faults.log in {self.experiment.config.run.dir} names them. Check the "
                f"shards with `genre-dist inspect {self.experiment.manifest.folder} --verify`"
            )

    def _not_finite(self, done: int, loss: float, norm: float) -> str:
        ids = self.experiment.stream.step_ids(done - 1)
        return (
            f"step {done}: the loss is {loss} and the gradient's norm {norm}; stopped on all ranks, checkpoints hold "
            "earlier steps only. Lower the learning rates, lengthen optim.warmup_steps or use fp32. "
            f"{self.experiment.manifest.declared.samples.capitalize()} of the step: " + " ".join(map(str, ids))
        )

    def _mfu(self, samples_per_second: float) -> float:
        """The used share of the devices' peak; 0 where the peak is unknown."""
        return samples_per_second * self.experiment.compute.flops_per_sample / self._peak if self._peak else 0.0
