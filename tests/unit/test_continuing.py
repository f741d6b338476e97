"""Each setting of the schema is decided: what a change of it means for a run that has steps."""

from dataclasses import replace

import pytest

from genre_dist.config import Config, DataConfig, HeadsConfig, ModelConfig, OptimConfig, RunConfig
from genre_dist.config.continuing import EFFECTS, changes, describe, effect_of, settings, trained_with

ALL = [name for name, _ in settings(Config())]


def test_every_setting_is_decided_once() -> None:
    assert len(ALL) > 70
    assert {effect_of(name) for name in ALL} == set(EFFECTS)  # effect_of asserts that it is once


def test_nothing_is_decided_that_is_no_setting() -> None:
    for name in (name for names in EFFECTS.values() for name in names):
        assert any(setting == name or setting.startswith(f"{name}.") for setting in ALL), name


def test_what_decides_the_weights_meaning_and_the_order_is_fixed() -> None:
    for name in ("model.text.pooling", "data.image_size", "data.max_tokens", "model.poster.batch_norm", "run.seed"):
        assert effect_of(name) == "fixed"
    assert {effect_of(name) for name in ALL if name.startswith("optim.") and name != "optim.optimizer"} == {"recorded"}
    assert {effect_of(name) for name in ALL if name.startswith(("tracking.", "checkpoint."))} == {"free"}


def test_two_configurations_differ_by_kind() -> None:
    config = Config()
    other = replace(
        config,
        data=DataConfig(image_size=160, workers=9, crop_scale=(1, 1)),
        optim=OptimConfig(text_lr=0.5),
        run=RunConfig(dir="elsewhere"),
    )
    before, now = trained_with(config), trained_with(other)
    assert changes(before, now, "fixed") == {"data.image_size": (224, 160)}
    assert changes(before, now, "recorded") == {"data.crop_scale": ([0.6, 1.0], [1, 1]), "optim.text_lr": (1e-3, 0.5)}
    assert changes(before, now, "start") == {}
    assert describe(changes(before, now, "fixed")) == "data.image_size=160 (was 224)"


def test_a_setting_that_an_older_version_did_not_know_does_not_differ() -> None:
    before = trained_with(Config())
    del before["model.text.pooling"]
    now = trained_with(Config(model=ModelConfig(heads=HeadsConfig(hidden=(7,)))))
    assert changes(before, now, "fixed") == {"model.heads.hidden": ([1024, 512], [7])}


@pytest.mark.parametrize(
    ("one", "other", "agrees"),
    [("auto", "learn", True), ("leave_out", "auto", True), ("learn", "learn", True), ("learn", "leave_out", False)],
)
def test_missing_fields_left_to_the_shards_agree_with_what_a_run_settled_on(one: str, other: str, agrees: bool) -> None:
    assert (changes({"model.missing": one}, {"model.missing": other}, "fixed") == {}) == agrees
