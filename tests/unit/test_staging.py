"""What a save copies and looks at while training waits."""

import pytest
import torch
from torch import Tensor

from genre_dist.parallel.tensors import all_finite
from genre_dist.training.staging import Staging

CPU = torch.device("cpu")


def state(value: float, step: int = 1) -> dict[str, dict[str, Tensor]]:
    """Fresh tensors, as a strategy that gathers its state makes them."""
    images = torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last)
    return {"model": {"conv": images, "bias": torch.full((5,), value)}, "optimizer": {"step": torch.tensor(step)}}


def addresses(staged: dict[str, dict[str, Tensor]]) -> list[int]:
    return [tensor.data_ptr() for part in staged.values() for tensor in part.values()]


def test_every_copy_is_of_its_moment_and_lies_in_the_same_memory() -> None:
    staging = Staging(CPU)
    live = state(1.0)
    first = staging.copy(live)
    where = addresses(first)
    live["model"]["conv"].fill_(7)  # training goes on
    assert torch.equal(first["model"]["conv"], state(1.0)["model"]["conv"])
    for step in (2, 3):
        staged = staging.copy(state(float(step), step))
        assert addresses(staged) == where
        for part, tensors in state(float(step), step).items():
            for name, tensor in tensors.items():
                assert torch.equal(staged[part][name], tensor)
    assert staged["model"]["conv"].is_contiguous(memory_format=torch.channels_last)


def test_a_state_with_other_tensors_in_it_gets_its_own_memory() -> None:
    """As when a part begins to train, and has moments from then on."""
    staging = Staging(CPU)
    staging.copy(state(1.0))
    more = state(2.0)
    more["optimizer"]["exp_avg"] = torch.ones(3)
    staged = staging.copy(more)
    assert staged["optimizer"].keys() == {"step", "exp_avg"}
    assert torch.equal(staged["model"]["bias"], more["model"]["bias"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(bad: float) -> None:
    good = [torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.tensor(3), torch.empty(0)]
    assert all_finite([*good, torch.tensor([3e38, -3e38]), torch.tensor(1.0, dtype=torch.bfloat16)])
    assert all_finite([])
    for place in (0, 50, 95):
        worse = good[0].contiguous().clone()
        worse.view(-1)[place] = bad
        assert not all_finite([*good[1:], worse.to(memory_format=torch.channels_last)])
    assert not all_finite([*good, torch.tensor(bad)])
