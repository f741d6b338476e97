"""The average of the weights: followed, swapped in and out, saved."""

import copy

import pytest
import torch
from torch import Tensor, nn

from genre_dist.parallel.replicated import Replicated
from genre_dist.parallel.world import World
from genre_dist.training.ema import Average, TrainState

ALONE = World(0, 1, torch.device("cpu"))


def kept(decay: float) -> tuple[TrainState, Average]:
    """A strategy with the average of its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = Average(model, decay, ALONE)
    return TrainState(Replicated(model, torch.optim.AdamW(trained, lr=0.1), ALONE), average), average


def learn(state: TrainState, steps: int) -> list[dict[str, Tensor]]:
    """Train; the weights after every step."""
    seen = []
    for _ in range(steps):
        state.strategy.backward(state.strategy.forward(torch.randn(5, 3)).square().mean())
        state.strategy.step(None)
        if state.average is not None:
            state.average.follow()
        seen.append(weights_of(state))
    return seen


def weights_of(state: TrainState) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.strategy.model.state_dict().items()}


def test_it_is_the_moving_average_of_what_is_trained_and_of_running_statistics() -> None:
    state, average = kept(0.7)
    expected = weights_of(state)
    for done, weights in enumerate(learn(state, 12)):
        decay = min(0.7, (1 + done) / (10 + done))
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    assert average.tensors.keys() == {name for name in expected if "num_batches" not in name and name[0] != "0"}
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, expected[name])


def test_the_weights_that_are_evaluated_and_exported_are_the_average_and_training_goes_on_with_its_own() -> None:
    state, average = kept(0.9)
    (*_, before) = learn(state, 3)
    expected = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with state.evaluated():
        inside = weights_of(state)
    exported = state.weights()
    for name, tensor in expected.items():
        assert torch.equal(inside[name], tensor)
        assert torch.equal(exported[name], tensor)
        assert not torch.equal(tensor, before[name])
        assert torch.equal(average.tensors[name], tensor)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(state).items())


def test_an_evaluation_that_is_given_up_leaves_the_trained_weights() -> None:
    state, _ = kept(0.9)
    (*_, before) = learn(state, 2)
    with pytest.raises(KeyError), state.evaluated():
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(state).items())


def test_its_state_continues_it() -> None:
    (first, averages), (second, same) = kept(0.9), kept(0.9)
    learn(first, 5)
    learn(second, 1)
    state, saved = second.blank_state(), copy.deepcopy(first.state_dict())
    for name, tensor in saved["ema"].items():
        state["ema"][name].copy_(tensor)
    second.load_state_dict(saved | {"ema": state["ema"]})
    for each in (first, second):
        torch.manual_seed(5)
        learn(each, 3)
    assert averages.steps == same.steps == 8
    assert all(torch.equal(tensor, same.tensors[name]) for name, tensor in averages.tensors.items())


def test_without_an_average_the_weights_are_evaluated_as_they_are() -> None:
    plain = TrainState(kept(0.9)[0].strategy)
    before = weights_of(plain)
    with plain.evaluated():
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(plain).items())


def test_a_step_looks_for_no_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's model has some 930 tensors: looking for them took longer than adding them up on a GPU."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(model, 0.5, ALONE)
    for name in ("named_parameters", "named_buffers", "parameters", "buffers", "state_dict"):
        monkeypatch.setattr(model, name, pytest.fail)
    with torch.no_grad():
        model[0].weight.fill_(3)
    for _ in range(4):
        average.follow()
    assert (average.tensors["0.weight"] > 1).all()
    assert average.tensors.keys() >= {"0.weight", "1.running_mean"}
