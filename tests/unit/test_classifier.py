"""The whole model: every trained tensor learns, no frozen one does, either encoder can be left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genre_dist.config import HeadsConfig, ModelConfig, NumbersConfig, OptimConfig, PosterConfig, TextConfig
from genre_dist.models.classifier import GenreClassifier, count_parameters, parameter_groups
from genre_dist.schema import Field, Labels, Schema
from genre_dist.stream.device_feed import FieldInput

torch.set_num_threads(1)
TEXT = TextConfig(hidden=8, layers=2, embedding_dim=6)
NO_TEXT = TextConfig(arch="none")
POSTER = PosterConfig(arch="resnet18", weights="none")
NO_POSTER = PosterConfig(arch="none")
TOKENS = torch.tensor([[2, 3, 4], [5, 0, 0]], dtype=torch.int32)
LENGTHS = np.array([3, 1])


def make_model(
    text: TextConfig = TEXT, poster: PosterConfig = POSTER, vectors: np.ndarray | None = None, vocabulary_size: int = 20
) -> GenreClassifier:
    torch.manual_seed(0)
    config = ModelConfig(text=text, poster=poster, heads=HeadsConfig(hidden=(16, 8)))
    return GenreClassifier(config, 19, 64, vocabulary_size, vectors)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))


def inputs() -> dict[str, FieldInput]:
    return {"poster": FieldInput(images()), "text": FieldInput(TOKENS, LENGTHS)}


def test_end_to_end_every_tensor_receives_a_gradient() -> None:
    model = make_model().train()
    logits = model(inputs())
    assert logits.shape == (2, 19)
    torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(2, 19)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("text", "poster", "trained"),
    [
        (replace(TEXT, frozen=True), POSTER, {"poster", "heads"}),
        (TEXT, replace(POSTER, frozen=True), {"text", "heads"}),
        (replace(TEXT, frozen=True), replace(POSTER, frozen=True), {"heads"}),
    ],
)
def test_no_frozen_tensor_receives_one_and_no_frozen_buffer_moves(
    text: TextConfig, poster: PosterConfig, trained: set[str]
) -> None:
    model = make_model(text, poster).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(inputs()).sum().backward()
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None} == trained
    moved = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert bool(moved) is ("poster" in trained)


def test_either_encoder_can_be_left_out() -> None:
    text_only, poster_only, both = make_model(poster=NO_POSTER), make_model(text=NO_TEXT), make_model()
    text, poster = {"text": inputs()["text"]}, {"poster": inputs()["poster"]}
    assert (text_only.parts, poster_only.parts, both.parts) == (("text",), ("poster",), ("text", "poster"))
    assert text_only(text).shape == (2, 19)
    assert poster_only(poster).shape == (2, 19)
    assert not any(name.startswith("poster") for name in text_only.state_dict())
    assert text_only.encode(text).shape == (2, 16)
    assert both.encode(inputs()).shape == (2, 16 + 512)
    with pytest.raises(ValueError, match="reads text and poster, and poster is not given"):
        both(text)
    with pytest.raises(ValueError, match="and text is not given"):
        both(poster)


def test_a_model_without_any_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.text\.arch .* leave out all of poster, overview: nothing to train"):
        make_model(NO_TEXT, NO_POSTER)


def test_numbers_are_encoded_with_marks_of_missing_ones() -> None:
    facts = Field(name="facts", kind="numbers", columns=("price", "weight"))
    title = Field(name="title", kind="text", columns=("title",))
    schema = Schema(id="sku", split_by="sku", labels=Labels(column="kind"), fields=(facts, title))
    config = ModelConfig(text=TEXT, poster=NO_POSTER, numbers=NumbersConfig(hidden=5), heads=HeadsConfig(hidden=(8,)))
    model = GenreClassifier(config, 3, 64, 20, None, schema=schema)
    assert model.parts == ("title", "facts")
    numbers = torch.tensor([[0.5, float("nan")], [0.5, 0.0]])
    fields = {"title": FieldInput(TOKENS, LENGTHS), "facts": FieldInput(numbers)}
    encoding = model.encode(fields)
    assert encoding.shape == (2, 16 + 5)
    assert not torch.equal(encoding[0, 16:], encoding[1, 16:])  # a missing number is no 0
    model(fields).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_encoding_is_the_texts_then_the_posters() -> None:
    model = make_model().eval()
    encoding = model.encode(inputs())
    torch.testing.assert_close(encoding[:, :16], model.text_encoders["text"](TOKENS, LENGTHS))
    torch.testing.assert_close(encoding[:, 16:], model.image_encoders["poster"](images()))


# --- a run's weights


def test_text_and_poster_start_from_a_runs_weights(tmp_path: Path) -> None:
    source = make_model()
    file = str(tmp_path / "model.safetensors")
    save_file(source.state_dict(), file)
    torch.manual_seed(1)
    config = ModelConfig(
        text=replace(TEXT, weights=file), poster=replace(POSTER, weights=file), heads=HeadsConfig(hidden=(16, 8))
    )
    model = GenreClassifier(config, 19, 64, 20, None)
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]) is not name.startswith("heads"), name
    untouched = GenreClassifier(config, 19, 64, 20, None, load_weights=False)
    assert not torch.equal(
        untouched.state_dict()["text.rnn.weight_ih_l0"], source.state_dict()["text.rnn.weight_ih_l0"]
    )


def test_text_weights_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(make_model(poster=NO_POSTER, vocabulary_size=30).state_dict(), file)
    told = rf"model\.text\.weights={file} .*another vocabulary .*embedding\.weight \(30, 6\) instead of \(20, 6\)"
    with pytest.raises(ValueError, match=told):
        make_model(replace(TEXT, weights=str(file)), NO_POSTER)


def test_text_weights_of_a_poster_run_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(make_model(text=NO_TEXT).state_dict(), file)
    with pytest.raises(ValueError, match=rf"{file} holds no text encoder"):
        make_model(replace(TEXT, weights=str(file)), NO_POSTER)


# --- what the optimizer and the record are told


def test_groups_give_each_part_its_rate_and_spare_biases_norms_and_word_vectors() -> None:
    model = make_model()
    optim = OptimConfig(text_lr=1.0, poster_lr=2.0, heads_lr=3.0, weight_decay=0.5)
    groups = {group["name"]: group for group in parameter_groups(model, optim)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "text": (1.0, 0.5),
        "text.no_decay": (1.0, 0.0),
        "poster": (2.0, 0.5),
        "poster.no_decay": (2.0, 0.0),
        "heads": (3.0, 0.5),
        "heads.no_decay": (3.0, 0.0),
    }
    assert model.text is not None
    spared = [parameter for name, group in groups.items() if "no_decay" in name for parameter in group["params"]]
    assert any(parameter is model.text.embedding.weight for parameter in spared)
    assert all(parameter.ndim == 1 or parameter is model.text.embedding.weight for parameter in spared)
    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters()), "each exactly once"


def test_frozen_parameters_are_in_no_group() -> None:
    vectors = np.ones((20, 6), dtype=np.float32)
    model = make_model(TEXT, replace(POSTER, frozen=True), vectors)
    groups = parameter_groups(model, OptimConfig())
    assert [group["name"] for group in groups] == ["text", "text.no_decay", "heads", "heads.no_decay"]
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])
    torch.optim.AdamW(groups)


def test_counts_say_what_is_trained_and_what_is_frozen() -> None:
    vectors = np.ones((20, 6), dtype=np.float32)
    counts = count_parameters(make_model(TEXT, replace(POSTER, frozen=True), vectors))
    assert counts["text"][1] == 20 * 6
    assert counts["poster"] == (0, 11_176_512)
    assert counts["heads"][1] == 0


def test_full_size_is_the_studys() -> None:
    with torch.device("meta"):
        model = GenreClassifier(ModelConfig(poster=PosterConfig(weights="none")), 19, 224, 30_000, None)
    embedding = 30_000 * 300
    assert count_parameters(model) == {
        "text": (15_933_440 + embedding, 0),
        "poster": (58_143_808, 0),
        "heads": (69_769_235, 0),
    }
