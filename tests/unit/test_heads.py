"""Nineteen heads computed together are nineteen heads."""

import pytest
import torch

from genre_dist.models.heads import Heads

torch.set_num_threads(1)


@pytest.mark.parametrize("hidden", [(16, 8), (16,), ()])
def test_batched_equals_separate_in_values_and_gradients(hidden: tuple[int, ...]) -> None:
    separate, batched = Heads(12, hidden, 5, "separate"), Heads(12, hidden, 5, "batched")
    batched.load_state_dict(separate.state_dict())
    outcomes = []
    for heads in (separate, batched):
        encoding = torch.randn(7, 12, generator=torch.manual_seed(0)).requires_grad_()
        logits = heads(encoding)
        (logits * torch.randn(7, 5, generator=torch.manual_seed(1))).sum().backward()
        outcomes.append((logits, encoding.grad, *(parameter.grad for parameter in heads.parameters())))
    assert outcomes[0][0].shape == (7, 5)
    torch.testing.assert_close(outcomes[1], outcomes[0], atol=1e-5, rtol=0)


def test_each_logit_is_one_heads_own() -> None:
    heads = Heads(12, (16,), 5, "auto")
    encoding = torch.randn(3, 12)
    for genre, head in enumerate(heads):
        torch.testing.assert_close(heads(encoding)[:, genre], head(encoding)[:, 0])


def test_auto_computes_one_by_one_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(12, (16,), 5, "auto")
    monkeypatch.setattr(heads, "_batched", None)
    heads(torch.randn(3, 12))


def test_full_size_is_the_studys() -> None:
    with torch.device("meta"):
        heads = Heads(3072, (1024, 512), 19, "auto")
    assert sum(parameter.numel() for parameter in heads.parameters()) == 69_769_235
    assert len(heads.state_dict()) == 114
    assert list(heads.state_dict())[:2] == ["0.0.weight", "0.0.bias"]
