"""What our training loop costs beside a bare PyTorch loop on the same batches in memory.

    python benchmarks/loop.py            ResNet18 + a small LSTM at 64 pixels, 240 pairs of steps
    python benchmarks/loop.py --quick    40 pairs

Ours is `training/loop.py` as users run it, with its record, its stop requests and its agreement of ranks; the bare loop
makes the same pixels, computes the loss, goes backward, clips, steps and reads the loss. Both train the same model on
the same batches, read once and kept, one step of each by turns, in one process with one thread: whatever disturbs the
machine disturbs both. A pair of steps gives a ratio; told are their median and its 95 % interval (by ranks, n/2 +- 0.98
sqrt(n): Conover, Practical Nonparametric Statistics, 3.2), for the CPU time, which other jobs disturb least, and for
the clock.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, options, report
from numpy.typing import NDArray
from torch import nn

from genre_dist.catalogue.sample_films import make_sample
from genre_dist.config.files import parse_config
from genre_dist.packing.pack import pack
from genre_dist.parallel.world import start_world
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import to_device, training_pixels
from genre_dist.training.experiment import Experiment
from genre_dist.training.loss import loss_sum
from genre_dist.training.trainer import Trainer

KEPT = 10  # different steps
WARM_UP = 6  # pairs
GOAL = 0.02
CPU = torch.device("cpu")


class Interleaved:
    """A stream that, beside each of its steps, takes the bare loop's step on the same batches; both are timed."""

    def __init__(self, experiment: Experiment, steps: int) -> None:
        self._experiment, self._stream = experiment, experiment.stream
        reading = self._stream.batches(0)
        kept = [[_copy(batch) for batch in next(reading)] for _ in range(KEPT)]
        reading.close()
        self._steps = [kept[number % KEPT] for number in range(steps)]
        self.steps_per_epoch = 10**6
        self.seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}

    def batches(self, position: int, *_: Any) -> Iterator[list[Batch]]:
        for number, micro_batches in enumerate(self._steps):
            if number % 2:  # by turns before and after ours
                self._take_bare_step(micro_batches)
            before = _now()
            yield micro_batches  # our loop takes its step, and asks for the next batches
            self._note("ours", before)
            if not number % 2:
                self._take_bare_step(micro_batches)

    def _take_bare_step(self, micro_batches: list[Batch]) -> None:
        before = _now()
        bare_step(self._experiment, micro_batches)
        self._note("bare", before)

    def _note(self, name: str, before: tuple[float, float]) -> None:
        clock, cpu = _now()
        self.seconds[name].append((clock - before[0], cpu - before[1]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _copy(batch: Batch) -> Batch:
    return batch.each(np.copy)


class Timed(Trainer):
    """The steps as users run them, but for the last checkpoint: what that costs is benchmarks/checkpoint.py's."""

    def save(self) -> None: ...


def bare_step(experiment: Experiment, micro_batches: list[Batch]) -> None:
    """The least that trains the same."""
    config, model, optimizer = experiment.config, experiment.model, experiment.strategy.optimizer
    pixels = training_pixels(config.data, config.run.seed, 0)
    count = sum(len(batch.ids) for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        inputs = to_device(batch, CPU, pixels)
        loss = loss_sum(model(inputs.fields), inputs.labels, inputs.weights) / count
        loss.backward()
        total += loss.item()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(trained, config.optim.clip_norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    arguments = options(__doc__ or "")
    torch.set_num_threads(1)
    steps = 1 + WARM_UP + (40 if arguments.quick else 240)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sample(120, 0, folder / "catalogue", (60, 90))
        pack(folder / "catalogue", folder / "shards", size=72, workers=1)
        settings = {
            "--data.shards": folder / "shards", "--run.dir": folder / "run", "--train.steps": steps,
            "--model.poster.arch": "resnet18", "--model.poster.weights": "none", "--data.image_size": 64,
            "--model.text.hidden": 64, "--model.text.layers": 1, "--model.heads.hidden": "[128]",
            "--data.global_batch": 16, "--data.workers": 0, "--train.eval_every_steps": 10**6,
            "--tracking.wandb": "off", "--checkpoint.asynchronous": "false",
        }  # fmt: skip
        config = parse_config([str(part) for pair in settings.items() for part in pair]).config
        with Timed(config, start_world()) as trainer:
            if trainer.run.record is not None:
                trainer.run.record.views.clear()
            interleaved: Any = Interleaved(trainer.experiment, steps)
            trainer.experiment = trainer.experiment._replace(stream=interleaved)
            trainer.train()
    report(_rows(interleaved.seconds), arguments.json)


def _rows(seconds: dict[str, list[tuple[float, float]]]) -> list[Row]:
    steps = len(seconds["ours"])  # the loop's last step is not timed: no other is asked for after it
    ours, bare = (np.array(seconds[name])[WARM_UP:steps] for name in ("ours", "bare"))  # [pairs, (clock, CPU)]
    over = ours / bare - 1
    cpu = _median("our loop over a bare one, CPU time", over[:, 1], "share")
    return [
        Row(**vars(cpu) | {"goal": f"< {GOAL}", "holds": cpu.value < GOAL}),
        _median("our loop over a bare one, the clock", over[:, 0], "share"),
        _median("a step of the bare loop", 1000 * bare[:, 1], "ms of CPU time"),
    ]


def _median(claim: str, values: NDArray[np.float64], unit: str) -> Row:
    """The median and its 95 % interval by ranks."""
    ordered, half = np.sort(values), 0.98 * len(values) ** 0.5
    low, high = ordered[max(0, int(len(values) / 2 - half))], ordered[min(len(values) - 1, int(len(values) / 2 + half))]
    spread = f"95 % interval {low:.4g} to {high:.4g} of {len(values)} pairs"
    return Row(claim=claim, value=float(np.median(values)), unit=unit, spread=spread)


if __name__ == "__main__":
    main()
