"""The text encoder reads every overview to its own last word, whatever lies around it in the batch."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, unpack_sequence

from genre_dist.config import TextConfig
from genre_dist.config.model import Pooling
from genre_dist.models.text import PooledStates, TextEncoder
from genre_dist.stream.sample import PADDING

torch.set_num_threads(1)
LENGTHS = torch.tensor([7, 1, 12, 4])


def make_encoder(vectors: np.ndarray | None = None, **settings: object) -> TextEncoder:
    torch.manual_seed(0)
    config = TextConfig(**{"hidden": 8, "embedding_dim": 6, **settings})  # type: ignore[arg-type]
    return TextEncoder(config, 50, vectors)


def make_batch(lengths: Tensor, width: int | None = None) -> Tensor:
    """Random tokens, as a batch padded to `width`."""
    tokens = torch.randint(2, 50, (len(lengths), width or int(lengths.max())), generator=torch.manual_seed(1))
    return tokens.where(torch.arange(tokens.shape[1]) < lengths[:, None], 0)


def packed_reference(rnn: PooledStates, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, nn.Module]:
    """The same weights in PyTorch's own module, over packed sequences, pooled film by film; and that module."""
    kind = nn.LSTM if rnn.mode == "LSTM" else nn.GRU
    own = kind(rnn.input_size, rnn.hidden_size, rnn.num_layers, batch_first=True, bidirectional=rnn.bidirectional)
    own.load_state_dict(rnn.state_dict())
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    outputs, states = own(packed)
    if rnn.pooling != "last":
        films = unpack_sequence(outputs)
        return torch.stack([film.amax(0) if rnn.pooling == "max" else film.mean(0) for film in films]), own
    states = states[0] if rnn.mode == "LSTM" else states
    directions = 2 if rnn.bidirectional else 1
    return states[-directions:].transpose(0, 1).flatten(1), own


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_values_and_gradients_equal_packing(pooling: Pooling, mode: str, layers: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    rnn = PooledStates(mode, 6, 8, layers, bidirectional=bidirectional, pooling=pooling)
    inputs = torch.randn(4, 12, 6, requires_grad=True)
    weight = torch.randn(4, rnn.hidden_size * (2 if bidirectional else 1))

    output = rnn(inputs, LENGTHS)
    (output * weight).sum().backward()
    input_grad, inputs.grad = inputs.grad, None
    expected, own = packed_reference(rnn, inputs, LENGTHS)
    (expected * weight).sum().backward()

    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(input_grad, inputs.grad, atol=1e-5, rtol=0)
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(rnn.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_the_path_for_gpus_equals_the_path_for_cpus(pooling: Pooling) -> None:
    torch.manual_seed(0)
    rnn = PooledStates("LSTM", 6, 8, 2, bidirectional=True, pooling=pooling)
    inputs = torch.randn(4, 12, 6)
    torch.testing.assert_close(rnn._packed(inputs, LENGTHS), rnn._padded_lstm(inputs, LENGTHS), atol=1e-5, rtol=0)


def test_id_0_trains_where_it_is_no_padding() -> None:
    """Batches are padded with 0 all the same, and no text reads that."""
    tokens, lengths = torch.tensor([[3, 0, 4, 0, 0]]), torch.tensor([3])
    for padding, trained in ((PADDING, {3, 4}), (None, {0, 3, 4})):
        torch.manual_seed(0)
        encoder = TextEncoder(TextConfig(hidden=8, embedding_dim=6), 50, None, padding)
        assert bool(encoder.embedding.weight[0].any()) == (padding is None)
        encoder(tokens, lengths).sum().backward()
        assert encoder.embedding.weight.grad is not None
        assert set(encoder.embedding.weight.grad.any(1).nonzero().flatten().tolist()) == trained
        torch.testing.assert_close(encoder(tokens, lengths), encoder(tokens[:, :3], lengths), atol=1e-6, rtol=0)


def test_under_autocast_it_stays_close_to_full_precision() -> None:
    encoder = make_encoder()
    tokens = make_batch(LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(tokens, LENGTHS)
    torch.testing.assert_close(rounded.float(), encoder(tokens, LENGTHS), atol=0.02, rtol=0)


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("arch", ["lstm", "gru"])
def test_an_encoding_depends_neither_on_padding_nor_on_neighbours(arch: str, pooling: Pooling) -> None:
    encoder = make_encoder(arch=arch, pooling=pooling)
    tokens = make_batch(LENGTHS)
    together = encoder(tokens, LENGTHS)
    padded_further = encoder(nn.functional.pad(tokens, (0, 30)), LENGTHS)
    alone = torch.cat([encoder(row[None, :length], length[None]) for row, length in zip(tokens, LENGTHS, strict=True)])
    assert together.shape == (4, 16)
    torch.testing.assert_close(padded_further, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ["lstm", "gru"])
def test_every_valid_word_counts_and_padding_does_not(arch: str) -> None:
    encoder = make_encoder(arch=arch)
    tokens = make_batch(LENGTHS)
    before = encoder(tokens, LENGTHS)
    changed = tokens.clone()
    changed[0, 6] = 49  # the last word of a film of 7
    changed[0, 7:] = 48  # its padding
    changed[3, 0] = 49  # the first word of another
    after = encoder(changed, LENGTHS)
    assert ((after - before).abs().amax(dim=1) > 1e-4).tolist() == [True, False, False, True]
    changed[0, 6] = tokens[0, 6]
    torch.testing.assert_close(encoder(changed, LENGTHS)[0], before[0])


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("arch", ["lstm", "gru"])
def test_no_text_reads_as_one_padding_token(arch: str, pooling: Pooling) -> None:
    encoder = make_encoder(arch=arch, pooling=pooling)
    padding = encoder(torch.zeros(1, 1, dtype=torch.int32), torch.tensor([1]))
    beside_others = encoder(make_batch(torch.tensor([5, 0])), torch.tensor([5, 0]))
    none_at_all = encoder(torch.zeros(2, 0, dtype=torch.int32), torch.tensor([0, 0]))
    torch.testing.assert_close(beside_others[1:], padding, atol=1e-5, rtol=0)
    torch.testing.assert_close(none_at_all, padding.expand(2, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ["lstm", "gru"])
def test_dropout_between_layers_acts_in_training_only(arch: str) -> None:
    tokens = make_batch(LENGTHS)
    encoder = make_encoder(arch=arch, dropout=0.5)
    assert not torch.equal(encoder(tokens, LENGTHS), encoder(tokens, LENGTHS))
    encoder.eval()
    assert torch.equal(encoder(tokens, LENGTHS), encoder(tokens, LENGTHS))
    torch.testing.assert_close(encoder(tokens, LENGTHS), make_encoder(arch=arch)(tokens, LENGTHS))


def test_parameters_are_those_of_one_lstm() -> None:
    ours = PooledStates("LSTM", 6, 8, 3, bidirectional=True).state_dict()
    theirs = nn.LSTM(6, 8, 3, batch_first=True, bidirectional=True).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    with torch.device("meta"):
        full_size = PooledStates("LSTM", 300, 512, 3, bidirectional=True)
    assert sum(p.numel() for p in full_size.parameters()) == 15_933_440


def test_given_word_vectors_are_kept_unless_they_are_to_be_trained() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)
    for train in (False, True):
        encoder = make_encoder(vectors, train_embedding=train)
        assert encoder.embedding.weight.requires_grad is train
        assert not encoder.embedding.weight[0].any(), "padding is zero whatever the file says"
        np.testing.assert_array_equal(encoder.embedding.weight[1:].detach(), vectors[1:])
        encoder(make_batch(LENGTHS), LENGTHS).sum().backward()
        assert (encoder.embedding.weight.grad is not None) is train


def test_without_word_vectors_the_embedding_is_random_and_trained() -> None:
    encoder = make_encoder()
    assert encoder.embedding.weight.shape == (50, 6)
    assert 0.9 < encoder.embedding.weight[1:].std() < 1.1
    encoder(make_batch(torch.tensor([3, 0])), torch.tensor([3, 0])).sum().backward()
    assert encoder.embedding.weight.grad is not None
    assert encoder.embedding.weight.grad.any()
    assert not encoder.embedding.weight.grad[0].any(), "padding stays zero"


@pytest.mark.parametrize("shape", [(49, 10), (50,)])
def test_vectors_of_another_vocabulary_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="vocabulary of 50 words"):
        make_encoder(np.zeros(shape, dtype=np.float32))


def test_frozen_means_no_gradient_and_eval_for_good() -> None:
    encoder = make_encoder(frozen=True, dropout=0.5).train()
    tokens = make_batch(LENGTHS)
    encoding = encoder(tokens, LENGTHS)
    assert not encoding.requires_grad
    assert torch.equal(encoding, encoder(tokens, LENGTHS)), "no dropout"
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
