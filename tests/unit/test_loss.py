"""The loss is a sum over samples, so that parts of a batch add up to the whole."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genre_dist.training.loss import loss_sum


def draw(n: int, genres: int = 19, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, genres, generator=generator), (torch.rand(n, genres, generator=generator) < 0.2).float()


def test_divided_by_the_count_it_is_torchs_mean() -> None:
    logits, labels = draw(7)
    expected = torch.nn.BCEWithLogitsLoss()(logits, labels)
    torch.testing.assert_close(loss_sum(logits, labels, torch.ones(7)) / 7, expected)


def test_weight_zero_leaves_a_sample_out_of_the_loss_and_of_the_gradient() -> None:
    logits, labels = draw(5)
    logits.requires_grad_()
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    loss = loss_sum(logits, labels, weights)
    kept = weights > 0
    torch.testing.assert_close(loss, loss_sum(logits[kept], labels[kept], torch.ones(3)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[~kept] == 0).all()
    assert (gradient[kept] != 0).all()


@given(cuts=st.lists(st.integers(0, 12), max_size=4), seed=st.integers(0, 1000))
def test_the_parts_add_up_to_the_whole(cuts: list[int], seed: int) -> None:
    logits, labels = draw(12, seed=seed)
    weights = (torch.rand(12, generator=torch.Generator().manual_seed(seed)) < 0.8).float()
    edges = [0, *sorted(cuts), 12]
    parts = [loss_sum(logits[a:b], labels[a:b], weights[a:b]) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(torch.stack(parts).sum(), loss_sum(logits, labels, weights))


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits, labels = draw(64)
    loss = loss_sum(logits.bfloat16(), labels, torch.ones(64))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_sum(logits.bfloat16().float(), labels, torch.ones(64)), rtol=0, atol=0)


def test_logits_of_any_size_give_a_finite_loss() -> None:
    logits = torch.tensor([[1e4, -1e4]])
    assert loss_sum(logits, torch.tensor([[1.0, 0.0]]), torch.ones(1)) == 0
    assert loss_sum(logits, torch.tensor([[0.0, 1.0]]), torch.ones(1)) == 1e4
