"""Fields that samples lack: what becomes an input, what is hidden, what stands in, and how it is measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from genre_dist.config import Config, DataConfig, HeadsConfig, ModelConfig, PosterConfig, TextConfig, TrainConfig
from genre_dist.metrics.measures import by_fields
from genre_dist.models.batchnorm import no_statistics
from genre_dist.models.classifier import GenreClassifier, MissingFields, parameter_groups
from genre_dist.packing.pack import pack
from genre_dist.stream.batch import Batch
from genre_dist.stream.device_feed import Size, dropping, to_device, whole_pixels
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.stream.reader import ShardReader
from genre_dist.training.experiment import settle_missing

CPU = torch.device("cpu")
FIELDS = ("overview", "poster")
WHOLE = whole_pixels(DataConfig(image_size=32))


@pytest.fixture(scope="module")
def manifest(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The sample's films with whatever they have."""
    folder = tmp_path_factory.mktemp("lacking") / "shards"
    pack(sample_catalogue, folder, size=40, shard_size=50, workers=1, require=())
    return load_manifest(folder)


def everything(manifest: Manifest, any_of: bool = True) -> Batch:
    reader = ShardReader(manifest, "train", FIELDS, 64, any_of=any_of)
    return reader.read(_all_rows(reader))


def _all_rows(reader: ShardReader):  # type: ignore[no-untyped-def]
    rows = [reader.index.rows_of(number) for number in range(len(reader.index.sizes))]
    return type(rows[0])(*map(np.concatenate, zip(*rows, strict=True)))


# ---- reading


def test_a_reader_of_any_field_reads_every_film_that_has_one(manifest: Manifest) -> None:
    batch = everything(manifest)
    patterns = manifest.patterns("train", FIELDS)
    assert len(batch.ids) == manifest.samples("train", FIELDS, any_of=True) == sum(patterns.values()) - patterns[()]
    text, poster = batch.arrays["text.has"], batch.arrays["poster.has"]
    assert (text & poster).sum() == patterns[FIELDS] == manifest.samples("train", FIELDS)
    assert (text & ~poster).sum() == patterns[("overview",)] > 0
    assert (poster & ~text).sum() == patterns[("poster",)] > 0
    assert batch.weights.all()
    assert not batch.faults


def test_what_a_film_lacks_is_blank_and_the_rest_is_as_ever(manifest: Manifest) -> None:
    batch, complete = everything(manifest), everything(manifest, any_of=False)
    assert batch.images is not None
    assert batch.tokens is not None
    assert batch.lengths is not None
    assert (batch.images[~batch.arrays["poster.has"]] == 128).all()
    assert not batch.tokens[~batch.arrays["text.has"]].any()
    assert not batch.lengths[~batch.arrays["text.has"]].any()
    both = batch.arrays["text.has"] & batch.arrays["poster.has"]
    assert np.array_equal(batch.ids[both], complete.ids)
    assert np.array_equal(batch.images[both], complete.images)
    assert set(complete.arrays) == {"poster.images", "text.tokens", "text.lengths"}


# ---- on the device


def test_only_the_values_that_are_there_become_inputs(manifest: Manifest) -> None:
    batch = everything(manifest)
    inputs = to_device(batch, CPU, WHOLE)
    for part, values in (("poster", batch.arrays["poster.images"]), ("text", batch.arrays["text.tokens"])):
        field, has = inputs.fields[part], batch.arrays[f"{part}.has"]
        assert field.values is not None
        assert field.at is not None
        assert field.has is not None
        assert len(field.values) == has.sum() < len(has)
        assert np.array_equal(field.has, has)
        # each film's position leads to its own value
        assert field.at[torch.as_tensor(has)].tolist() == list(range(has.sum()))
        if part == "text":
            assert np.array_equal(field.values, values[has])
    assert inputs.absent == ()


@pytest.mark.parametrize("part", ["poster", "text"])
def test_where_no_film_has_a_field_a_blank_one_stands_in_and_is_named(part: str, manifest: Manifest) -> None:
    batch = everything(manifest)
    lacking = batch.each(lambda array: array[~batch.arrays[f"{part}.has"]])
    inputs = to_device(lacking, CPU, WHOLE)
    assert inputs.absent == (part,)
    assert inputs.fields[part].values is not None
    assert len(inputs.fields[part].values) == 1
    assert inputs.samples == len(lacking.ids) > 0


def test_a_compiled_model_gets_its_size_whatever_is_missing(manifest: Manifest) -> None:
    batch = everything(manifest)
    inputs = to_device(batch, CPU, WHOLE, Size(len(batch.ids) + 5, fill=True))
    sizes = {len(value) for field in inputs.fields.values() for value in field if value is not None}
    assert sizes == {len(batch.ids) + 5}
    assert not inputs.odd
    assert to_device(batch, CPU, WHOLE, Size(len(batch.ids), fill=False)).odd


# ---- hiding


@given(st.integers(0, 2**31), st.integers(0, 50), st.floats(0.05, 0.9))
def test_hiding_is_a_pure_function_of_sample_and_epoch_and_never_takes_all(seed: int, epoch: int, share: float) -> None:
    ids = np.arange(400, dtype=np.int64) * 7919
    has = {"text": ids % 3 > 0, "poster": ids % 5 > 0}
    hidden = dropping(share, seed, epoch)
    assert hidden is not None
    shown = hidden(ids, has)
    for part in has:
        assert not (shown[part] & ~has[part]).any()
    assert np.array_equal(shown["text"] | shown["poster"], has["text"] | has["poster"])
    some = np.array([3, 250, 11])
    alone = hidden(ids[some], {part: own[some] for part, own in has.items()})
    assert all(np.array_equal(alone[part], shown[part][some]) for part in has)


def test_hiding_takes_its_share_and_other_ones_in_each_epoch() -> None:
    ids = np.arange(20_000, dtype=np.int64)
    has = {"text": np.ones(len(ids), bool), "poster": np.ones(len(ids), bool)}
    first, second = (dropping(0.1, 3, epoch)(ids, has) for epoch in (0, 1))  # type: ignore[misc]
    assert 1 - first["text"].mean() == pytest.approx(0.1 * 0.9, abs=0.01)  # where both would go, both stay
    assert (first["text"] != second["text"]).mean() > 0.1
    assert (first["text"] != first["poster"]).mean() > 0.1
    assert dropping(0, 3, 0) is None


# ---- the model


def model(missing: str = "learn", batch_norm: str = "train") -> GenreClassifier:
    torch.manual_seed(0)
    config = ModelConfig(
        missing=missing,  # type: ignore[arg-type]
        text=TextConfig(hidden=8, layers=1, embedding_dim=6),
        poster=PosterConfig(arch="resnet18", weights="none", batch_norm=batch_norm),  # type: ignore[arg-type]
        heads=HeadsConfig(hidden=(8,)),
    )
    return GenreClassifier(config, 19, 32, 10_000, None)


def test_a_missing_encoding_is_the_learned_vector_and_the_others_are_untouched(manifest: Manifest) -> None:
    network, batch = model().eval(), everything(manifest)
    assert network.missing is not None
    with torch.no_grad():
        for number, vector in enumerate(network.missing.parameters()):
            vector.fill_(number + 1)
        inputs = to_device(batch, CPU, WHOLE)
        encodings = network.encode(inputs.fields)
        has = {part: field.has for part, field in inputs.fields.items()}
        filled = network.missing(encodings, has)
    text, poster = (torch.as_tensor(batch.arrays[f"{part}.has"]) for part in ("text", "poster"))
    assert (filled[~text][:, :16] == 1).all()
    assert (filled[~poster][:, 16:] == 2).all()
    assert torch.equal(filled[text][:, :16], encodings[text][:, :16])
    alone = batch.each(lambda array: array[:1])
    with torch.no_grad():
        one = network(to_device(alone, CPU, WHOLE).fields)
        assert torch.allclose(one, network(inputs.fields)[:1], atol=1e-5)


def test_batch_norm_counts_the_images_that_are_there_and_no_blank_ones(manifest: Manifest) -> None:
    batch = everything(manifest)
    there = batch.each(lambda array: array[batch.arrays["poster.has"]])
    networks = [model().train(), model().train()]
    for network, given_batch in zip(networks, (batch, there), strict=True):
        network(to_device(given_batch, CPU, WHOLE).fields)
    ours, theirs = (dict(network.named_buffers()) for network in networks)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    lacking = to_device(batch.each(lambda array: array[~batch.arrays["poster.has"]]), CPU, WHOLE)
    network = model().train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    with no_statistics([network.get_submodule(part) for part in lacking.absent]):
        network(lacking.fields).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    poster = [parameter.grad for parameter in network.image_encoders["poster"].parameters()]
    assert all(grad is not None and not grad.any() for grad in poster)  # every rank has gradients to exchange


def test_the_vectors_learn_at_the_rate_of_the_heads_and_never_decay() -> None:
    network = model()
    groups = {group["name"]: group for group in parameter_groups(network, Config().optim)}
    assert isinstance(network.missing, MissingFields)
    assert [id(p) for p in groups["missing.no_decay"]["params"]] == [id(p) for p in network.missing.parameters()]
    assert groups["missing.no_decay"]["lr"] == Config().optim.heads_lr
    assert isinstance(model("leave_out").missing, nn.Module) is False


# ---- which it is


@pytest.mark.parametrize(
    ("asked", "lacking", "share", "settled"),
    [
        ("auto", True, 0.0, "learn"),
        ("auto", False, 0.0, "leave_out"),
        ("auto", False, 0.1, "learn"),
        ("leave_out", True, 0.0, "leave_out"),
        ("learn", False, 0.0, "learn"),
    ],
)
def test_auto_learns_where_films_lack_a_field(
    asked: str, lacking: bool, share: float, settled: str, manifest: Manifest, sample_shards: Path, tmp_path: Path
) -> None:
    made = Config(model=ModelConfig(missing=asked), train=TrainConfig(drop_field=share))  # type: ignore[arg-type]
    object.__setattr__(made.run, "dir", str(tmp_path / "run"))
    shards = manifest if lacking else load_manifest(sample_shards)
    assert settle_missing(made, shards).model.missing == settled


def test_a_run_of_a_version_without_the_setting_goes_on_leaving_films_out(manifest: Manifest, tmp_path: Path) -> None:
    made = Config()
    object.__setattr__(made.run, "dir", str(tmp_path))
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("model: {text: {hidden: 8}}\n")
    assert settle_missing(made, manifest).model.missing == "leave_out"
    (tmp_path / "config.yaml").write_text("model: {missing: learn}\n")
    assert settle_missing(made, manifest).model.missing == "learn"


def test_hiding_what_the_model_cannot_do_without_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.drop_field hides fields that model\.missing=leave_out"):
        Config(model=ModelConfig(missing="leave_out"), train=TrainConfig(drop_field=0.1))


# ---- measuring


def test_metrics_are_given_for_films_with_every_field_and_for_each_pattern() -> None:
    has = {"overview": np.array([True, True, False, True]), "poster": np.array([True, False, True, True])}
    labels = np.array([[True, False], [True, False], [False, True], [False, True]])
    logits = np.array([[1, -1], [-1, -1], [-1, 1], [-1, 1]], np.float32)
    rows = by_fields(has, logits, labels, np.array([-2.0, 0.0]))
    assert {name: row["films"] for name, row in rows.items()} == {
        "overview and poster": 2,
        "only poster": 1,
        "only overview": 1,
    }
    assert [row["micro_f1"] for row in rows.values()] == [1, 1, 0]
    assert rows["only overview"]["micro_f1_fitted"] == 1
    assert by_fields({name: np.ones(4, bool) for name in has}, logits, labels, None) == {}
