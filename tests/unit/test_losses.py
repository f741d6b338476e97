"""The losses beside plain binary cross-entropy, their weights and smoothing."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from one_label import ARTICLES, declare
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from genre_dist.config import LossConfig
from genre_dist.stream.manifest import load_manifest
from genre_dist.training.loss import (
    Loss,
    class_weights,
    cross_entropy_sum,
    loss_sum,
    plain_loss,
    softmax_weights,
    training_loss,
)

ONES = torch.ones(6)
ALL = [
    LossConfig(kind="focal"),
    LossConfig(kind="asymmetric"),
    LossConfig(kind="asymmetric", margin=0.0, gamma_positive=1.0),
    LossConfig(class_weights="balanced"),
    LossConfig(kind="focal", class_weights="sqrt", label_smoothing=0.1),
]


@pytest.fixture
def make(sample_shards: Path) -> partial[Loss]:
    """Loss configuration -> loss on the sample's shards."""
    return partial(training_loss, manifest=load_manifest(sample_shards), device=torch.device("cpu"))


def draw(n: int = 6, genres: int = 19) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(n, genres, generator=generator), (torch.rand(n, genres, generator=generator) < 0.3).float()


def test_by_default_it_is_the_very_function_that_evaluates(make: partial[Loss]) -> None:
    assert make(LossConfig()) is loss_sum


def test_focal_loss_is_torchvisions(make: partial[Loss]) -> None:
    logits, labels = draw()
    expected = sigmoid_focal_loss(logits, labels, alpha=-1, gamma=1.5, reduction="none").mean(1).sum()
    torch.testing.assert_close(make(LossConfig(kind="focal", focal_gamma=1.5))(logits, labels, ONES), expected)


def test_asymmetric_loss_is_the_papers_equation(make: partial[Loss]) -> None:
    logits, labels = draw()
    config = LossConfig(kind="asymmetric", gamma_positive=1.0, gamma_negative=4.0, margin=0.05)
    expected = 0.0
    for film, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        for logit, label in zip(film, truth, strict=True):
            p = 1 / (1 + math.exp(-logit))
            shifted = max(p - 0.05, 0)
            expected -= (1 - p) * math.log(p) if label else shifted**4 * math.log(1 - shifted)
    assert make(config)(logits, labels, ONES).item() == pytest.approx(expected / 19, rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(kind="focal", focal_gamma=0),
        LossConfig(kind="asymmetric", gamma_positive=0, gamma_negative=0, margin=0),
    ],
)
def test_without_focusing_both_are_plain_cross_entropy(config: LossConfig, make: partial[Loss]) -> None:
    logits, labels = draw()
    torch.testing.assert_close(make(config)(logits, labels, ONES), loss_sum(logits, labels, ONES))


def test_class_weights_are_torchs_pos_weight(make: partial[Loss], sample_shards: Path) -> None:
    logits, labels = draw()
    manifest = load_manifest(sample_shards)
    weights = class_weights("balanced", manifest.genre_counts["train"], manifest.samples("train"))
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none").mean(1).sum()
    torch.testing.assert_close(make(LossConfig(class_weights="balanced"))(logits, labels, ONES), expected)
    assert weights.max() > 2 * weights.min()  # weights that are all alike would show nothing


def test_a_genre_weighs_as_much_as_it_is_rare_and_one_that_no_film_has_weighs_one() -> None:
    counts = [50, 10, 1, 0, 100]
    assert class_weights("balanced", counts, 100).tolist() == [1, 9, 99, 1, 1]
    assert class_weights("sqrt", counts, 100).tolist() == pytest.approx([1, 3, math.sqrt(99), 1, 1])
    assert class_weights("none", counts, 100).tolist() == [1] * 5


def test_smoothing_moves_labels_towards_one_half(make: partial[Loss]) -> None:
    logits, labels = draw()
    expected = F.binary_cross_entropy_with_logits(logits, 0.8 * labels + 0.1, reduction="none").mean(1).sum()
    torch.testing.assert_close(make(LossConfig(label_smoothing=0.2))(logits, labels, ONES), expected)


@pytest.mark.parametrize("config", ALL)
def test_each_is_a_sum_over_samples_in_fp32_that_weight_zero_leaves(config: LossConfig, make: partial[Loss]) -> None:
    logits, labels = draw()
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    loss = make(config)
    parts = [loss(logits[k : k + 1].bfloat16(), labels[k : k + 1], weights[k : k + 1]) for k in range(6)]
    whole = loss(logits.bfloat16(), labels, weights)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    torch.testing.assert_close(loss(logits.bfloat16()[weights > 0], labels[weights > 0], torch.ones(4)), whole)


@pytest.mark.parametrize("config", ALL)
def test_logits_of_any_size_give_finite_losses_and_gradients(config: LossConfig, make: partial[Loss]) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0, 200.0, -200.0] + [0.0] * 14], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0] + [0.0] * 14])
    loss = make(config)(logits, labels, torch.ones(1))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["focal_gamma", "gamma_positive", "gamma_negative", "margin", "label_smoothing"])
def test_values_that_cannot_be_meant_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{name} must"):
        LossConfig(**{name: -0.1})


# --- exactly one label a sample

ALL_OF_ONE = [
    LossConfig(),
    LossConfig(kind="focal"),
    LossConfig(class_weights="balanced"),
    LossConfig(kind="focal", class_weights="sqrt", label_smoothing=0.1),
]


@pytest.fixture
def make_one(make: partial[Loss], monkeypatch: pytest.MonkeyPatch) -> partial[Loss]:
    """Loss configuration -> loss on shards whose samples have exactly one label."""
    declare(ARTICLES, monkeypatch)
    return make


def draw_one(n: int = 6, labels: int = 19) -> tuple[Tensor, Tensor]:
    """Logits, and the number of each sample's label."""
    generator = torch.Generator().manual_seed(2)
    return 3 * torch.randn(n, labels, generator=generator), torch.randint(labels, (n,), generator=generator)


def test_with_one_label_it_is_torchs_cross_entropy_by_default_and_in_evaluation(make_one: partial[Loss]) -> None:
    logits, label = draw_one()
    assert make_one(LossConfig()) is cross_entropy_sum is plain_loss("one")
    assert plain_loss("many") is loss_sum
    expected = F.cross_entropy(logits, label, reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(logits, F.one_hot(label, 19).float(), ONES), expected)


def test_with_one_label_class_weights_and_smoothing_are_torchs(make_one: partial[Loss], sample_shards: Path) -> None:
    logits, label = draw_one()
    weight = softmax_weights("balanced", load_manifest(sample_shards).genre_counts["train"])
    assert weight.max() > 2 * weight.min()
    expected = F.cross_entropy(logits, label, weight, reduction="sum", label_smoothing=0.2)
    found = make_one(LossConfig(class_weights="balanced", label_smoothing=0.2))
    torch.testing.assert_close(found(logits, F.one_hot(label, 19).float(), ONES), expected)


def test_balanced_weights_of_one_label_are_scikit_learns_and_leave_the_mean_weight_one() -> None:
    assert softmax_weights("balanced", [50, 25, 25, 0]).tolist() == [0.5, 1, 1, 1]
    assert softmax_weights("sqrt", [50, 25, 25, 0]).tolist() == pytest.approx([math.sqrt(0.5), 1, 1, 1])
    assert softmax_weights("none", [50, 25, 25, 0]).tolist() == [1] * 4
    counts = torch.tensor([70.0, 20.0, 10.0])
    assert (softmax_weights("balanced", [70, 20, 10]) * counts).sum() == pytest.approx(100)


def test_the_focal_loss_of_one_label_weighs_by_the_softmaxs_probability(make_one: partial[Loss]) -> None:
    logits, label = draw_one()
    p = logits.softmax(1)[torch.arange(6), label]
    expected = -((1 - p) ** 1.5 * p.log()).sum()
    found = make_one(LossConfig(kind="focal", focal_gamma=1.5))(logits, F.one_hot(label, 19).float(), ONES)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("config", ALL_OF_ONE)
def test_with_one_label_each_is_a_sum_over_samples_in_fp32_that_weight_zero_leaves(
    config: LossConfig, make_one: partial[Loss]
) -> None:
    logits, label = draw_one()
    labels, weights = F.one_hot(label, 19).float(), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    loss = make_one(config)
    parts = [loss(logits[k : k + 1].bfloat16(), labels[k : k + 1], weights[k : k + 1]) for k in range(6)]
    whole = loss(logits.bfloat16(), labels, weights)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize("config", ALL_OF_ONE)
def test_with_one_label_logits_of_any_size_give_finite_losses_and_gradients(
    config: LossConfig, make_one: partial[Loss]
) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0] + [0.0] * 16, [-200.0, 200.0, 0.0] + [0.0] * 16], requires_grad=True)
    loss = make_one(config)(logits, F.one_hot(torch.tensor([0, 0]), 19).float(), torch.ones(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_an_asymmetric_loss_of_one_label_is_refused_in_words_of_the_data(make_one: partial[Loss]) -> None:
    with pytest.raises(ValueError, match=r"loss\.kind=asymmetric .* each article of .* has exactly one topic"):
        make_one(LossConfig(kind="asymmetric"))
