"""Twenty times in sixty steps a rank is killed or the group preempted, at random moments; nothing of it is to be seen
in the end: not in the losses, not in the films of any step, not in the weights."""

import json
import random
from pathlib import Path

import kills
import numpy as np
import pytest
import torch
from helpers import checkpoints, losses, rows, tensors_of
from kills import GLOBAL_BATCH, STEPS, said, short_run

from genre_dist.config import Config
from genre_dist.stream.loader import TrainStream
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.reader import ShardReader

EVENTS = 20
ROUNDING = 1e-6
"""The ranks' BatchNorm statistics, with which an evaluation computes, are averaged at every save; saves at other
moments round otherwise."""
ENDS = {"SIGKILL": {-9}, "SIGTERM": {75}, "SIGUSR1": {75}, "STOP": {75}}


def run_through(worlds: list[int], config: Config, folder: Path, seed: int) -> None:
    """A life for each of the worlds, each ended by an event, and one more that is left alone."""
    draw = random.Random(seed)
    for world in worlds:
        how = draw.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1", "STOP"])
        bomb = kills.Bomb(draw.randrange(world), draw.randint(1, 16), how)
        codes = kills.live(world, config, folder, bomb)
        assert codes[bomb.rank] in ENDS[how], f"{bomb}: {codes}\n{said(folder)}"  # it went off: the run is not over
    assert kills.live(worlds[-1], config, folder) == [0] * worlds[-1], said(folder)


def assert_films_of_every_step(shards: Path, folder: Path, worlds: set[int]) -> None:
    """Whatever was computed again after a kill, and by however many ranks: a step's films are the order's."""
    reader = ShardReader(load_manifest(shards), "train", ("overview", "poster"), 256)
    order = TrainStream(reader, global_batch=GLOBAL_BATCH, micro_batch=GLOBAL_BATCH, seed=0)
    seen: set[int] = set()
    for path in folder.glob("films-*.jsonl"):
        rank = int(path.stem.removeprefix("films-"))
        for step, films in map(json.loads, path.read_text().splitlines()):
            whole = order.step_ids(step).tolist()
            shares = [set(np.array_split(whole, world)[rank]) for world in worlds if rank < world]
            assert set(films) <= set(whole)
            assert len(films) in {len(share) for share in shares}
            seen.add(step)
    assert seen == set(range(STEPS))


def test_twenty_kills_and_preemptions_leave_no_trace(quiet: Path, sample_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_through([2] * EVENTS, short_run(sample_shards, run), tmp_path, seed=1)
    assert losses(run) == losses(quiet)  # bit for bit
    for kind in ("val", "test"):
        attacked, undisturbed = ({row["step"]: row["loss"] for row in rows(folder, kind)} for folder in (run, quiet))
        assert attacked == pytest.approx(undisturbed, rel=ROUNDING, abs=0)
    assert_films_of_every_step(sample_shards, tmp_path, {2})
    expected, found = (tensors_of(folder / "checkpoints" / checkpoints(quiet)[-1]) for folder in (quiet, run))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        tolerance = ROUNDING if "running_" in name else 0.0
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda told, n=name: f"{n}: {told}"
        )


def test_with_another_number_of_ranks_after_each_event_the_films_are_the_same(
    sample_shards: Path, tmp_path: Path
) -> None:
    run, quiet = tmp_path / "run", tmp_path / "quiet" / "run"
    more = ("--model.poster.batch_norm", "eval")
    quiet.parent.mkdir()
    assert kills.live(1, short_run(sample_shards, quiet, *more), quiet.parent) == [0], said(quiet.parent)
    run_through([1, 4, 2, 1, 2, 4, 2], short_run(sample_shards, run, *more), tmp_path, seed=2)
    assert_films_of_every_step(sample_shards, tmp_path, {1, 2, 4})
    ours, theirs = losses(run), losses(quiet)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-4)
