"""However a rank ends, those that cannot go on without it say so in one line and end with the code that fits."""

import signal
from pathlib import Path

import pytest
from helpers import step_reached, until
from kills import Ranks, short_run

ENDLESS = ("--train.steps", 50000, "--train.eval_every_steps", 50000, "--checkpoint.every_steps", 50000)


def said(folder: Path, rank: int) -> str:
    return (folder / f"rank-{rank}.log").read_text()


def assert_one_line(folder: Path, rank: int, *words: str) -> None:
    (line,) = [line for line in said(folder, rank).splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line
    assert "Traceback" not in said(folder, rank)


@pytest.mark.parametrize(
    ("network", "code", "why"),
    [
        ("mistaken", 2, "ended: the poster of film 7 is upside down"),
        ("broken", 1, "ended with ZeroDivisionError: a bug"),
        ("interrupted", 75, "was interrupted"),
    ],
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_a_rank_that_cannot_go_on_without_another_one_says_why_and_what_that_one_ended_with(
    strategy: str, network: str, code: int, why: str, sample_shards: Path, tmp_path: Path
) -> None:
    more = ("--model.poster.arch", f"bad_ranks:{network}", "--parallel.strategy", strategy)
    with Ranks(2, short_run(sample_shards, tmp_path / "run", *more), tmp_path) as ranks:
        until(lambda: None not in ranks.codes(), 90, "both ranks to end")
        assert ranks.codes()[0] == code, said(tmp_path, 0)
        assert_one_line(tmp_path, 0, f"rank 1 (process {ranks.ranks[1].pid} on ", why)
    assert "in forward" in said(tmp_path, 1)  # its own error is shown whole, where it happened


@pytest.mark.parametrize(("strategy", "victim"), [("ddp", 0), ("ddp", 1), ("fsdp", 0), ("zero3", 1)])
def test_beside_a_killed_rank_the_others_name_it_and_end(
    strategy: str, victim: int, sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = short_run(sample_shards, run, *ENDLESS, "--parallel.strategy", strategy)
    with Ranks(2, config, tmp_path) as ranks:
        until(lambda: step_reached(run, 3), 90, "step 3")
        ranks.ranks[victim].kill()
        until(lambda: None not in ranks.codes(), 60, "both ranks to end")
        assert ranks.codes()[1 - victim] == 1, said(tmp_path, 1 - victim)
        assert_one_line(tmp_path, 1 - victim, f"rank {victim} (process {ranks.ranks[victim].pid} on ", "was killed")


def test_a_group_of_four_is_over_soon_after_one_of_them(sample_shards: Path, tmp_path: Path) -> None:
    """Not only its neighbours in the exchange hear of it."""
    run = tmp_path / "run"
    with Ranks(4, short_run(sample_shards, run, *ENDLESS), tmp_path) as ranks:
        until(lambda: step_reached(run, 3), 90, "step 3")
        ranks.ranks[2].kill()
        until(lambda: None not in ranks.codes(), 60, "all ranks to end")
        assert ranks.codes() == [1, 1, -signal.SIGKILL, 1]
        for rank in (0, 1, 3):
            assert_one_line(tmp_path, rank, f"rank 2 (process {ranks.ranks[2].pid} on ")
