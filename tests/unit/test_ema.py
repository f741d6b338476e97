"""The average of the weights: followed, swapped in and out, saved."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genre_dist.parallel.replicated import Replicated
from genre_dist.parallel.world import World
from genre_dist.training.ema import Averaged, evaluated

ALONE = World(0, 1, torch.device("cpu"))


def strategy(decay: float) -> Averaged:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Averaged(Replicated(model, torch.optim.AdamW(trained, lr=0.1), ALONE), decay, ALONE)


def learn(averaged: Averaged, steps: int) -> list[dict[str, Tensor]]:
    """Train; the weights after every step."""
    seen = []
    for _ in range(steps):
        averaged.backward(averaged.forward(torch.randn(5, 3)).square().mean())
        averaged.step(None)
        seen.append({name: tensor.clone() for name, tensor in averaged.model.state_dict().items()})
    return seen


def test_it_is_the_moving_average_of_what_is_trained_and_of_running_statistics() -> None:
    averaged = strategy(0.7)
    expected = {name: tensor.clone() for name, tensor in averaged.model.state_dict().items()}
    for done, weights in enumerate(learn(averaged, 12)):
        decay = min(0.7, (1 + done) / (10 + done))
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    assert averaged.average.keys() == {name for name in expected if "num_batches" not in name and name[0] != "0"}
    for name, tensor in averaged.average.items():
        torch.testing.assert_close(tensor, expected[name])


def test_the_weights_that_are_evaluated_and_exported_are_the_average_and_training_goes_on_with_its_own() -> None:
    averaged = strategy(0.9)
    (*_, before) = learn(averaged, 3)
    average = {name: tensor.clone() for name, tensor in averaged.average.items()}
    with evaluated(averaged):
        inside = {name: tensor.clone() for name, tensor in averaged.model.state_dict().items()}
    exported = averaged.weights()
    for name, tensor in average.items():
        assert torch.equal(inside[name], tensor)
        assert torch.equal(exported[name], tensor)
        assert not torch.equal(tensor, before[name])
        assert torch.equal(averaged.average[name], tensor)
    assert all(torch.equal(tensor, before[name]) for name, tensor in averaged.model.state_dict().items())


def test_an_evaluation_that_is_given_up_leaves_the_trained_weights() -> None:
    averaged = strategy(0.9)
    (*_, before) = learn(averaged, 2)
    with pytest.raises(KeyError), evaluated(averaged):
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in averaged.model.state_dict().items())


def test_its_state_continues_it() -> None:
    first, second = strategy(0.9), strategy(0.9)
    learn(first, 5)
    learn(second, 1)
    state, saved = second.blank_state(), copy.deepcopy(first.state_dict())
    for name, tensor in saved["ema"].items():
        state["ema"][name].copy_(tensor)
    second.load_state_dict(saved | {"ema": state["ema"]})
    for strategy_ in (first, second):
        torch.manual_seed(5)
        learn(strategy_, 3)
    assert first.steps == second.steps == 8
    assert all(torch.equal(tensor, second.average[name]) for name, tensor in first.average.items())


def test_a_plain_strategy_is_evaluated_as_it_is() -> None:
    plain = strategy(0.9).inner
    before = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    with evaluated(plain):
        assert all(torch.equal(tensor, before[name]) for name, tensor in plain.model.state_dict().items())


def test_a_step_looks_for_no_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's model has some 930 tensors: looking for them took longer than adding them up on a GPU."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    inner: Any = SimpleNamespace(model=model, optimizer=None, step=lambda clip_norm: torch.zeros(()))
    averaged = Averaged(inner, 0.5, ALONE)
    for name in ("named_parameters", "named_buffers", "parameters", "buffers", "state_dict"):
        monkeypatch.setattr(model, name, pytest.fail)
    with torch.no_grad():
        model[0].weight.fill_(3)
    for _ in range(4):
        averaged.step(None)
    assert (averaged.average["0.weight"] > 1).all()
    assert averaged.average.keys() >= {"0.weight", "1.running_mean"}
