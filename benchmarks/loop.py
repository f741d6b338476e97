"""What our training loop costs beside a bare PyTorch loop on the same batches in memory.

python benchmarks/loop.py            ResNet18 + a small LSTM at 64 pixels, 12 rounds
python benchmarks/loop.py --quick    4 rounds

Both loops train copies of one model on the same micro-batches, read once and kept: ours is `training/loop.py` as users
run it, with its record, its stop requests and its agreement of ranks; the bare one makes the same pixels, computes the
loss, goes backward, clips, steps and reads the loss. They take turns, ten steps each. The CPU time of the training
thread is compared, which other jobs on the machine disturb less than the clock; the clock's ratio stands beside it.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, measured, options, report
from torch import nn

from genre_dist.acquire.sample import make_sample
from genre_dist.configfile import parse_config
from genre_dist.parallel.world import start_world
from genre_dist.prepare.pack import pack
from genre_dist.stream.reader import Batch
from genre_dist.training.experiment import Experiment, set_up
from genre_dist.training.inputs import to_device, training_pixels
from genre_dist.training.loop import _train
from genre_dist.training.loss import loss_sum
from genre_dist.training.saving import Saver
from genre_dist.training.stopping import StopRequest
from genre_dist.training.tracking import Record

STEPS = 10


class Kept:
    """A stream whose steps are read once and kept."""

    def __init__(self, experiment: Experiment) -> None:
        self._stream = experiment.stream
        reading = experiment.stream.batches(0)
        self.steps = [[_copy(batch) for batch in next(reading)] for _ in range(STEPS)]
        reading.close()
        self.steps_per_epoch = 10**6

    def batches(self, position: int) -> Iterator[list[Batch]]:
        yield from self.steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _copy(batch: Batch) -> Batch:
    values = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in vars(batch).items()}
    return Batch(**values)


def ours(experiment: Experiment, folder: Path) -> None:
    """Ten steps as users run them."""
    stop = StopRequest(folder)
    saver = Saver(folder / "checkpoints", experiment.strategy, experiment.world, experiment.config.checkpoint, {})
    saver.save = lambda step: None  # type: ignore[method-assign]  # what a checkpoint costs is benchmarks/checkpoint.py's
    record = Record(folder / "metrics.jsonl", 0, STEPS, [])
    _train(experiment, folder, 0, record, stop, saver, lambda *_: None)
    record.close()
    stop.close()
    saver.close()


def bare(experiment: Experiment, steps: list[list[Batch]]) -> None:
    """Ten steps of the least that trains the same."""
    config, model, optimizer = experiment.config, experiment.model, experiment.strategy.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    for micro_batches in steps:
        count = sum(len(batch.ids) for batch in micro_batches)
        total = 0.0
        for batch in micro_batches:
            inputs = to_device(batch, torch.device("cpu"), training_pixels(config.data, config.run.seed, 0))
            logits = model(inputs.images, inputs.tokens, inputs.lengths)
            loss = loss_sum(logits, inputs.labels, inputs.weights) / count
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, config.optim.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    arguments = options(__doc__ or "")
    torch.set_num_threads(1)
    rounds = 4 if arguments.quick else 12
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sample(300, 0, folder / "catalogue")
        pack(folder / "catalogue", folder / "shards", workers=2)
        settings = {
            "--data.shards": folder / "shards",
            "--model.poster.arch": "resnet18",
            "--model.poster.weights": "none",
            "--model.text.hidden": 64,
            "--model.text.layers": 1,
            "--model.heads.hidden": "[128]",
            "--data.image_size": 64,
            "--data.global_batch": 16,
            "--data.workers": 0,
            "--train.steps": STEPS,
            "--train.eval_every_steps": 10**6,
            "--tracking.wandb": "off",
            "--checkpoint.asynchronous": "false",
            "--run.dir": folder / "run",
        }
        config = parse_config([str(part) for pair in settings.items() for part in pair]).config
        experiment = set_up(config, start_world())
        kept: Any = Kept(experiment)
        experiment = experiment._replace(stream=kept)
        (folder / "run").mkdir()
        report(_compare(experiment, kept.steps, folder / "run", rounds), arguments.json)


def _compare(experiment: Experiment, steps: list[list[Batch]], folder: Path, rounds: int) -> list[Row]:
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
    for _ in range(rounds + 1):
        for name in times:
            clock, cpu = time.perf_counter(), time.process_time()
            ours(experiment, folder) if name == "ours" else bare(experiment, steps)
            times[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    pairs = list(zip(times["ours"], times["bare"], strict=True))[1:]  # the first round warms up
    over_cpu = measured("our loop over a bare one, CPU time", [mine[1] / its[1] - 1 for mine, its in pairs], "share")
    goal = Row(**vars(over_cpu) | {"goal": "< 0.02", "holds": over_cpu.value < 0.02})
    return [
        goal,
        measured("our loop over a bare one, the clock", [mine[0] / its[0] - 1 for mine, its in pairs], "share"),
        measured("a step of the bare loop", [1000 * its[1] / STEPS for _, its in pairs], "ms of CPU time"),
    ]


if __name__ == "__main__":
    main()
