"""Watching a run: each step becomes a row of the record, and what must stop the run is found."""

import time

import numpy as np

from genre_dist.stream.batch import Seconds
from genre_dist.training.experiment import Experiment
from genre_dist.training.step import Figures, StepResult
from genre_dist.training.throughput import peak_flops, peak_memory_bytes
from genre_dist.training.tracking import Record

ALWAYS_TOLERATED = 8
"""Bad samples an epoch may have whatever its size, before data.max_bad_fraction counts."""


def tolerated(samples: int, fraction: float) -> float:
    """How many of these samples may be bad."""
    return max(ALWAYS_TOLERATED, fraction * samples)


class Watch:
    """Turns steps into rows of the record, one step late so that the device never has to be waited for.

    What must stop the run (a loss that is not finite, too many bad samples) is found here, on all ranks together since
    the numbers are sums over all ranks.
    """

    def __init__(self, experiment: Experiment, record: Record | None) -> None:
        self.experiment, self.record = experiment, record
        self.pending: tuple[int, int, Figures, float, Seconds, float] | None = None
        self.ranks: dict[str, list[float]] | None = None  # for the next row
        self.stop_asked = self.save_asked = False
        self.stood_still = 0.0
        """Seconds that training waited for checkpoints since the last row."""
        self.bad: dict[int, int] = {}  # epoch -> samples that could not be read
        self.peak = peak_flops(experiment.world.device, experiment.precision) * experiment.world.size
        self.restart_clock()

    def restart_clock(self) -> None:
        self.began = time.monotonic()

    def step(self, done: int, epoch: int, result: StepResult, waited: float, reading: Seconds) -> bool:
        """Note a step that is queued; returns whether any rank was asked to stop, a step late on a GPU.

        Reading the step before waits until it is done, and the device goes on with this one.
        """
        figures = Figures(result)
        self.flush()
        now = time.monotonic()
        self.pending = (done, epoch, figures, waited, reading, now - self.began)
        self.began = now
        if self.experiment.world.device.type == "cpu":  # nothing runs ahead there
            self.flush()
        return self.stop_asked

    def flush(self) -> None:
        """Write what is pending."""
        if self.pending is not None:
            previous, self.pending = self.pending, None
            self._write(*previous)

    def _write(self, done: int, epoch: int, figures: Figures, waited: float, reading: Seconds, seconds: float) -> None:
        total, samples, bad, stopping, saving, norm = figures.read()
        self.stop_asked, self.save_asked = stopping > 0, saving > 0
        loss = total / max(1.0, samples)
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise ValueError(self._not_finite(done, loss, norm))
        self._check_bad(epoch, int(bad))
        if self.record is None or done % self.experiment.config.train.log_every_steps:
            return
        rates = {group["name"]: group["lr"] for group in self.experiment.strategy.optimizer.param_groups}
        self.record.write(
            {
                "kind": "train",
                "step": done,
                "epoch": epoch,
                "loss": loss,
                "grad_norm": norm,
                "samples": int(samples),
                "bad_samples": int(bad),
                "samples_per_second": samples / seconds,
                "step_seconds": seconds,
                "data_wait": min(1.0, waited / seconds),
                "read_seconds": reading.read,  # of this rank's reader processes together, in the background
                "decode_seconds": reading.decode,
                "reader_idle_seconds": reading.idle,  # waiting for a free slot: reading keeps up
                "checkpoint_seconds": self.stood_still,
                "mfu": self._mfu(samples / seconds),
                "memory_bytes": peak_memory_bytes(self.experiment.world.device),
                "ranks": self.experiment.world.size,
                "device": self.experiment.world.device.type,
                **{f"lr_{name}": rate for name, rate in rates.items() if "." not in name},
                **(self.ranks or {}),
            }
        )
        self.ranks = None
        self.stood_still = 0.0

    def _check_bad(self, epoch: int, bad: int) -> None:
        self.bad[epoch] = self.bad.get(epoch, 0) + bad
        limit = self.experiment.config.data.max_bad_fraction
        if self.bad[epoch] > tolerated(self.experiment.stream.reader.index.samples, limit):
            raise ValueError(
                f"{self.bad[epoch]} samples of epoch {epoch} could not be read, more than data.max_bad_fraction="
                f"{limit} allows; faults.log in {self.experiment.config.run.dir} names them. Check the shards with "
                f"`genre-dist inspect {self.experiment.manifest.folder} --verify`"
            )

    def _not_finite(self, done: int, loss: float, norm: float) -> str:
        ids = self.experiment.stream.step_ids(done - 1)
        return (
            f"step {done}: the loss is {loss} and the gradient's norm {norm}; stopped on all ranks, checkpoints hold "
            "earlier steps only. Lower the learning rates, lengthen optim.warmup_steps or use fp32. Films of the step: "
            + " ".join(map(str, ids))
        )

    def _mfu(self, samples_per_second: float) -> float:
        """Share of the devices' peak that is used; 0 where the peak is unknown, never a guess."""
        return samples_per_second * self.experiment.flops_per_sample / self.peak if self.peak else 0.0
