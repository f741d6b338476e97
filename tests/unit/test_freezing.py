"""What is frozen when is a pure function of the step."""

from typing import Any

import pytest
import torch
from helpers import small_resnet
from torch import nn

from genre_dist.config import ModelConfig, OptimConfig, PosterConfig, TextConfig
from genre_dist.models.classifier import GenreClassifier, parameter_groups
from genre_dist.training.freezing import Frozen, freeze, frozen_at, thaw_all_that_ever_trains

EPOCH = 10


def config(text: dict[str, Any], poster: dict[str, Any]) -> ModelConfig:
    small = TextConfig(hidden=4, layers=1, embedding_dim=4, **text)
    return ModelConfig(text=small, poster=PosterConfig(arch="helpers:small_resnet", weights="none", **poster))


def test_without_a_point_what_is_frozen_stays_frozen() -> None:
    model = config({"frozen": True}, {"frozen_through": "layer2"})
    assert {frozen_at(model, step, EPOCH) for step in (0, 5, 10**6)} == {Frozen(True, False, "layer2")}


@pytest.mark.parametrize(("point", "step"), [(7, 7), ("7", 7), ("2ep", 2 * EPOCH), ("0ep", 0)])
def test_a_point_is_a_step_or_an_epoch(point: int | str, step: int) -> None:
    model = config({"frozen": True, "unfreeze_at": point}, {"frozen": True, "unfreeze_at": point})
    for at in range(3 * EPOCH):
        assert frozen_at(model, at, EPOCH) == Frozen(at < step, at < step, None)


def test_a_poster_encoder_thaws_stage_by_stage() -> None:
    stages = {"layer3": 5, "layer1": "1ep", "none": "2ep"}
    model = config({}, {"frozen": True, "unfreeze_at": stages})
    expected = [(True, None)] * 5 + [(False, "layer3")] * 5 + [(False, "layer1")] * 10 + [(False, None)] * 5
    assert [frozen_at(model, step, EPOCH)[1:3] for step in range(25)] == expected


def test_a_transformer_thaws_layer_by_layer() -> None:
    layers = {"encoder.layer.1": 5, "none": "2ep"}
    settings = {"arch": "hf:bert", "pooling": "mean", "frozen": True, "unfreeze_at": layers}
    model = config(settings, {})
    seen = [(frozen.text, frozen.text_through) for frozen in (frozen_at(model, step, EPOCH) for step in range(25))]
    assert seen == [(True, None)] * 5 + [(False, "encoder.layer.1")] * 15 + [(False, None)] * 5
    settings = {"arch": "hf:bert", "pooling": "mean", "frozen_through": "embeddings", "unfreeze_at": 3}
    through = [frozen_at(config(settings, {}), step, EPOCH).text_through for step in range(5)]
    assert through == ["embeddings"] * 3 + [None] * 2


@pytest.mark.parametrize(
    ("text", "poster", "named"),
    [
        ({"unfreeze_at": 3}, {}, "model.text.unfreeze_at"),
        ({"frozen": True, "unfreeze_at": "3 epochs"}, {}, "model.text.unfreeze_at"),
        ({}, {"unfreeze_at": 3}, "model.poster.unfreeze_at"),
        ({}, {"frozen": True, "unfreeze_at": {"layer1": "soon"}}, "model.poster.unfreeze_at"),
    ],
)
def test_points_that_cannot_be_meant_are_refused(text: dict[str, Any], poster: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config(text, poster)


# --- a model


def model_of(settings: ModelConfig) -> GenreClassifier:
    torch.manual_seed(0)
    return GenreClassifier(settings, 3, 32, 10, None)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_model_follows_and_its_batch_norms_stay_in_eval_mode_while_frozen() -> None:
    settings = config({"frozen": True, "unfreeze_at": 4}, {"frozen": True, "unfreeze_at": {"layer2": 2, "none": 4}})
    model = model_of(settings).train()
    everything = {name for name, _ in model.named_parameters()}
    heads = {name for name in everything if name.startswith("heads.")}
    later = {name for name in everything if name.startswith(("poster.network.layer3", "poster.network.layer4"))}
    changes = []
    for step, expected in enumerate([heads, heads, heads | later, heads | later, everything]):
        changes.append(freeze(model, frozen_at(settings, step, EPOCH)))
        assert trained(model) == expected, step
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == (f"{name}.weight" in expected), (step, name)
    assert changes == [False, False, True, False, True]


def test_the_optimizer_is_made_for_all_that_ever_trains() -> None:
    settings = config({"frozen": True, "unfreeze_at": 4}, {"frozen_through": "layer2"})
    model = model_of(settings)
    thaw_all_that_ever_trains(model, settings)
    held = {id(parameter) for group in parameter_groups(model, OptimConfig()) for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in held}
    assert any(name.startswith("text.") for name in names)
    assert any(name.startswith("poster.network.layer3") for name in names)
    assert not any(name.startswith("poster.network.layer2") for name in names)


def test_word_vectors_that_are_not_to_be_trained_stay_frozen_when_the_encoder_thaws() -> None:
    settings = config({"frozen": True, "unfreeze_at": 1}, {})
    model = GenreClassifier(settings, 3, 32, 10, torch.zeros(10, 4).numpy())
    thaw_all_that_ever_trains(model, settings)
    assert "text.embedding.weight" not in trained(model)
    assert any(name.startswith("text.rnn") for name in trained(model))


def test_a_stage_that_there_is_not_is_refused_before_training() -> None:
    settings = config({}, {"frozen": True, "unfreeze_at": {"layer9": 2}})
    with pytest.raises(ValueError, match="layer9 is no module"):
        thaw_all_that_ever_trains(model_of(settings), settings)


def test_the_small_network_is_built_as_torchvisions_are() -> None:
    assert {"layer1", "layer4"} <= {name for name, _ in small_resnet().named_children()}
