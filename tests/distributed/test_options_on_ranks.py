"""What a trainer offers beside plain training gives on two ranks what it gives on one."""

import json
from pathlib import Path

import pytest
from helpers import losses, options, train

from genre_dist.train import main

STEPS = 8
SMALL_STEPS = ("--optim.warmup_steps", 0, "--optim.poster_lr", 1e-5, "--optim.text_lr", 1e-3, "--optim.heads_lr", 1e-3)
FROZEN_FIRST = ("--model.poster.frozen", "true", "--model.text.frozen", "true")
CASES = {
    "average and loss": (
        *("--train.ema_decay", 0.5),
        *("--loss.kind", "focal", "--loss.class_weights", "sqrt", "--loss.label_smoothing", 0.1),
    ),
    "thawing": (*FROZEN_FIRST, "--model.poster.unfreeze_at", 3, "--model.text.unfreeze_at", 5),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_as_one(case: str, sample_shards: Path, tmp_path: Path) -> None:
    common = ("--data.global_batch", 16, "--data.micro_batch", 4, "--train.steps", STEPS, *SMALL_STEPS)
    batch_norm = ("--model.poster.batch_norm", "eval", "--data.workers", 0)
    for world in (1, 2):
        arguments = options(sample_shards, tmp_path / str(world), *common, *batch_norm, *CASES[case])
        codes, said = ([main(arguments)], "") if world == 1 else train(tmp_path / "log", world, arguments, seconds=120)
        assert codes == [0] * world, said
    one, two = (tmp_path / str(world) for world in (1, 2))
    assert list(losses(one)) == list(range(1, STEPS + 1))
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    told = [json.loads((run / "metrics-test.json").read_text()) for run in (one, two)]
    assert told[1]["loss"] == pytest.approx(told[0]["loss"], abs=1e-4)
