"""The losses beside plain binary cross-entropy, their weights and smoothing."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from genre_dist.config import LossConfig
from genre_dist.stream.manifest import load_manifest
from genre_dist.training.loss import Loss, class_weights, loss_sum, training_loss

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
