"""The learning rate is a pure function of the step."""

import math
from typing import Literal

import pytest
import torch

from genre_dist.config import OptimConfig
from genre_dist.training.schedule import lr_factor, set_learning_rates


def test_warm_up_rises_in_equal_parts_to_the_peak() -> None:
    optim = OptimConfig(warmup_steps=4)
    assert [lr_factor(step, 100, optim) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_warm_up_takes_at_most_a_tenth_of_the_run() -> None:
    optim = OptimConfig(warmup_steps=50, schedule="constant")
    assert [lr_factor(step, 20, optim) for step in range(3)] == [0.5, 1.0, 1.0]
    assert lr_factor(0, 9, optim) == 1.0  # less than ten steps: none at all


def test_cosine_falls_from_the_peak_to_its_end() -> None:
    optim = OptimConfig(warmup_steps=0, final_lr_fraction=0.2)
    assert lr_factor(0, 100, optim) == 1.0
    assert lr_factor(25, 100, optim) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert lr_factor(50, 100, optim) == pytest.approx(0.6)
    assert lr_factor(100, 100, optim) == pytest.approx(0.2)
    factors = [lr_factor(step, 100, optim) for step in range(101)]
    assert factors == sorted(factors, reverse=True)


def test_past_the_end_the_rate_stays_where_the_cosine_ended() -> None:
    assert lr_factor(500, 100, OptimConfig(final_lr_fraction=0.1)) == pytest.approx(0.1)


def test_constant_stays_at_the_peak() -> None:
    optim = OptimConfig(warmup_steps=2, schedule="constant")
    assert {lr_factor(step, 100, optim) for step in range(2, 100)} == {1.0}


def test_every_rate_of_every_run_is_a_share_of_the_peak() -> None:
    for total in (1, 2, 9, 10, 11, 300):
        for warmup in (0, 1, 50, 1000):
            optim = OptimConfig(warmup_steps=warmup)
            assert all(0 <= lr_factor(step, total, optim) <= 1 for step in range(total))
            assert lr_factor(0, total, optim) > 0  # the first step of the shortest run learns something


def test_each_group_keeps_its_own_peak() -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, "peak_lr": lr} for lr in (0.1, 0.002)]
    optimizer = torch.optim.AdamW(groups)
    set_learning_rates(optimizer, 0.5)
    set_learning_rates(optimizer, 0.25)  # of the peak, not of what was set before
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.0005])


def test_linear_falls_in_equal_parts_from_the_peak_to_its_end() -> None:
    optim = OptimConfig(schedule="linear", warmup_steps=2, final_lr_fraction=0.5)
    factors = [lr_factor(step, 22, optim) for step in range(2, 23)]
    assert factors == pytest.approx([1 - 0.5 * k / 20 for k in range(21)])


def test_cool_down_is_constant_and_then_falls_in_equal_parts_to_its_end() -> None:
    optim = OptimConfig(schedule="constant", warmup_steps=0, cooldown_fraction=0.2, final_lr_fraction=0.1)
    factors = [lr_factor(step, 100, optim) for step in range(101)]
    assert set(factors[:81]) == {1.0}
    assert factors[80:] == pytest.approx([1 - 0.9 * k / 20 for k in range(21)])


def test_up_to_the_cool_down_a_longer_run_has_the_same_rates() -> None:
    optim = OptimConfig(schedule="constant", warmup_steps=5, cooldown_fraction=0.25)
    assert [lr_factor(step, 100, optim) for step in range(75)] == [lr_factor(step, 200, optim) for step in range(75)]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_cool_down_of_a_schedule_that_falls_by_itself_is_refused(schedule: Literal["cosine", "linear"]) -> None:
    with pytest.raises(ValueError, match=r"optim\.cooldown_fraction belongs to optim\.schedule=constant"):
        OptimConfig(schedule=schedule, cooldown_fraction=0.1)
