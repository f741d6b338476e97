"""A run that an older version began, and the shards it read, are continued and read by this one to the bit.

`golden/run-2674138.tar.xz` holds what commit 2674138 left with torch 2.15: the shards of 60 drawn films, a run on them
as it stood after step 4 of 8, and the record of the same run when nothing stopped it.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from helpers import TESTS, losses, options, rows

from genre_dist.cli import main as console
from genre_dist.train import main

WRITTEN_BY = ("2.15", "AVX2")
"""torch's version and the instructions of the CPU whose last bits the record has."""


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(TESTS / "golden" / "run-2674138.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_begun_by_an_older_version_ends_with_the_losses_it_would_have_had(golden: Path) -> None:
    more = ("--train.ema_decay", 0.9, "--run.seed", 11, "--data.workers", 0, "--train.eval_every_steps", 2)
    arguments = options("shards", Path("run"), "--train.steps", 8, "--data.global_batch", 8, *more)
    assert main(arguments) == 0
    whole = [json.loads(line) for line in (golden / "whole-metrics.jsonl").read_text().splitlines()]
    expected = {row["step"]: row["loss"] for row in whole if row["kind"] == "train"}
    evaluated = {row["step"]: row["loss"] for row in whole if row["kind"] == "val"}
    same_machine = (torch.__version__[:4], torch.backends.cpu.get_cpu_capability()) == WRITTEN_BY
    close = 0 if same_machine else 1e-5
    assert losses(Path("run")) == pytest.approx(expected, rel=close, abs=0)
    assert {row["step"]: row["loss"] for row in rows(Path("run"), "val")} == pytest.approx(evaluated, rel=close, abs=0)


def test_older_shards_are_whole_and_keep_their_order(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console(["inspect", "shards", "--verify"]) == 0
    capsys.readouterr()
    assert console(["order", "shards", *"--global_batch 8 --seed 11 --epoch 0 --steps 0:3".split()]) == 0
    steps = ["0\t17 35 30 5 52 20 4 47", "1\t23 55 2 16 7 36 8 24", "2\t25 59 1 21 37 11 60 49"]
    assert capsys.readouterr().out.splitlines() == steps
