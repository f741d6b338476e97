"""Any torchvision classifier becomes an encoder; its weights come from where the config says; frozen is frozen."""

import urllib.error
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_model, resnet18

from genre_dist.config import PosterConfig
from genre_dist.models.poster import PosterEncoder
from genre_dist.models.weights import load_state

torch.set_num_threads(1)
HERE = "test_poster_encoder"
SMALL = {
    "resnet18": 512,
    "vgg11": 4096,
    "squeezenet1_1": 512,
    "mobilenet_v3_small": 1024,
    "efficientnet_b0": 1280,
    "densenet121": 1024,
    "convnext_tiny": 768,
    "shufflenet_v2_x0_5": 1024,
    "mnasnet0_5": 1280,
    "googlenet": 1024,
    "vit_b_32": 768,
}


def make_encoder(arch: str = "resnet18", weights: str = "none", **settings: object) -> PosterEncoder:
    return PosterEncoder(PosterConfig(arch=arch, weights=weights, **settings), image_size=64)  # type: ignore[arg-type]


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.manual_seed(0))


# What the callables of `arch: package.module:function` return here.


def vector_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def map_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6))


def not_a_network() -> int:
    return 3


def one_number_network() -> nn.Module:
    return nn.Flatten(0)


def wants_224_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2))


# --- architectures


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "size"), SMALL.items())
def test_any_torchvision_classifier_encodes(arch: str, size: int) -> None:
    encoder = make_encoder(arch).eval()
    assert encoder.encoding_size == size
    with torch.no_grad():
        assert encoder(images(1)).shape == (1, size)


def test_the_studys_networks_have_its_sizes() -> None:
    config = PosterConfig(arch="resnet152", weights="none")
    with torch.device("meta"):
        resnet = PosterEncoder(config, 224)
        vgg = PosterEncoder(PosterConfig(arch="vgg16", weights="none"), 224)
        inception = PosterEncoder(PosterConfig(arch="inception_v3", weights="none"), 224)
    assert sum(p.numel() for p in resnet.parameters()) == 58_143_808
    assert [encoder.encoding_size for encoder in (resnet, vgg, inception)] == [2048, 4096, 2048]
    assert not any("AuxLogits" in name for name, _ in inception.named_parameters())


def test_the_encoding_is_what_the_classifier_would_have_read() -> None:
    encoder = make_encoder().eval()
    classifier = resnet18().eval()
    classifier.load_state_dict(encoder.network.state_dict(), strict=False)
    with torch.no_grad():
        expected = classifier(images())
        torch.testing.assert_close(classifier.fc(encoder(images())), expected)
        in_nhwc = encoder(images().to(memory_format=torch.channels_last))
        torch.testing.assert_close(classifier.fc(in_nhwc), expected, atol=1e-4, rtol=0)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"model\.poster\.arch=resnet125 .*resnet152"):
        make_encoder("resnet125")


def test_a_size_that_a_transformer_cannot_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vit_b_32 cannot take data\.image_size=65"):
        PosterEncoder(PosterConfig(arch="vit_b_32", weights="none"), image_size=65)


@pytest.mark.parametrize(("function", "size"), [("vector_network", 5), ("map_network", 6)])
def test_a_callable_may_return_vectors_or_maps(function: str, size: int) -> None:
    encoder = make_encoder(f"{HERE}:{function}", weights="auto")
    assert (encoder.encoding_size, encoder.weights_used) == (size, "callable")
    assert encoder(images()).shape == (2, size)
    if function == "map_network":
        torch.testing.assert_close(encoder(images()), encoder.network(images()).mean((2, 3)))
        assert encoder.network[1].training


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("no_such_package.module:function", "cannot be imported"),
        (f"{HERE}:no_such_function", "cannot be imported"),
        (f"{HERE}:SMALL", "cannot be imported and called"),
        (f"{HERE}:not_a_network", r"must return a torch\.nn\.Module, not int"),
        (f"{HERE}:one_number_network", r"must map .* got \(12288,\)"),
        (f"{HERE}:wants_224_network", r"cannot take data\.image_size=64"),
    ],
)
def test_a_callable_that_is_none_is_told(arch: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_encoder(arch, weights="auto")


# --- weights


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", ["torchvision", "data parallel", "wrapped", "a run's"])
def test_weights_come_from_a_file_of_torchvision_or_of_a_run(tmp_path: Path, form: str, suffix: str) -> None:
    source = resnet18()
    state = source.state_dict()
    if form == "data parallel":
        state = {f"module.{name}": value for name, value in state.items()}
    if form == "a run's":
        encoder = make_encoder()
        source = encoder.network
        state = {f"poster.{name}": value for name, value in encoder.state_dict().items()}
        state["heads.0.0.weight"] = torch.zeros(2)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else state, file)
    else:
        save_file(state, file)

    encoder = make_encoder(weights=str(file))

    assert encoder.weights_used == f"file:{file}"
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.network.state_dict().items())


@pytest.mark.parametrize("arch", ["densenet121", "mnasnet0_5", "googlenet"])
def test_oddities_of_torchvisions_files_are_known(tmp_path: Path, arch: str) -> None:
    options = {"init_weights": False} if arch == "googlenet" else {}
    state = get_model(arch, weights=None, **options).state_dict()  # googlenet: with its auxiliary heads
    if arch == "densenet121":  # as in its old file
        state = {
            name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
            for name, value in state.items()
            if not name.endswith("num_batches_tracked")
        }
    torch.save(dict(state), tmp_path / "weights.pth")
    make_encoder(arch, weights=str(tmp_path / "weights.pth"))


def test_position_embeddings_of_a_transformer_are_resized() -> None:
    def network(image_size: int) -> VisionTransformer:
        return VisionTransformer(image_size, patch_size=32, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)

    source, target = network(96), network(64)
    load_state(target, source.state_dict(), "vit.pth", "a transformer")
    assert torch.equal(target.conv_proj.weight, source.conv_proj.weight)
    assert torch.equal(target.encoder.pos_embedding[:, 0], source.encoder.pos_embedding[:, 0])
    assert target.encoder.pos_embedding.shape[1] == 1 + 2 * 2


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ("resnet34", r"unexpected layer1\.2"),
        ("resnet50", r"of another shape layer1\.0\.conv1\.weight \(64, 64, 1, 1\) instead of \(64, 64, 3, 3\)"),
        ("squeezenet1_1", r"missing conv1\.weight"),
    ],
)
def test_a_file_of_another_architecture_is_named(tmp_path: Path, arch: str, told: str) -> None:
    file = tmp_path / "other.pth"
    torch.save(get_model(arch, weights=None).state_dict(), file)
    with pytest.raises(ValueError, match=rf"other\.pth does not fit resnet18.*another architecture.*{told}"):
        make_encoder(weights=str(file))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "pickled_module.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "pickled_module.pth").read_bytes()[:500])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "weights.onnx").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    for file in [*tmp_path.iterdir(), tmp_path / "absent.pth"]:
        with pytest.raises(ValueError, match=rf"model\.poster\.weights={file}"):
            make_encoder(weights=str(file))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every download fails, as on a node without a way out; returns the empty folder of downloads."""

    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_imagenet_out_of_reach_says_both_ways_out(no_network: Path) -> None:
    with pytest.raises(ValueError, match="Network is unreachable") as error:
        make_encoder(weights="imagenet")
    for part in ("resnet18-f37072fd.pth", str(no_network), "--model.poster.weights FILE", "none"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_auto_goes_on_with_random_weights_and_one_warning(no_network: Path) -> None:
    with pytest.warns(UserWarning, match="random weights: ImageNet weights of resnet18 are out of reach") as warned:
        encoder = make_encoder(weights="auto")
    assert encoder.weights_used == "random"
    assert len(warned) == 1


@pytest.mark.parametrize("weights", ["imagenet", "auto"])
def test_a_file_put_where_downloads_go_is_used(no_network: Path, weights: str) -> None:
    no_network.mkdir()
    source = resnet18()
    torch.save(source.state_dict(), no_network / "resnet18-f37072fd.pth")
    encoder = make_encoder(weights=weights)
    assert encoder.weights_used == "imagenet"
    assert torch.equal(encoder.network.conv1.weight, source.conv1.weight)


def test_a_partial_download_is_named(no_network: Path) -> None:
    no_network.mkdir()
    torch.save(resnet18().state_dict(), no_network / "whole")
    content = (no_network / "whole").read_bytes()
    for size in (0, 100, len(content) // 2):
        (no_network / "resnet18-f37072fd.pth").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"damaged.*resnet18-f37072fd\.pth"):
            make_encoder(weights="imagenet")


def test_a_callable_has_no_imagenet_weights() -> None:
    with pytest.raises(ValueError, match=r"model\.poster\.weights=imagenet"):
        make_encoder(f"{HERE}:vector_network", weights="imagenet")


def test_other_ranks_load_nothing(no_network: Path) -> None:
    config = PosterConfig(arch="resnet18", weights="imagenet")
    with warnings.catch_warnings(action="error"):
        assert PosterEncoder(config, 64, load_weights=False).weights_used == "not loaded"


# --- freezing and BatchNorm


def moved_statistics(encoder: PosterEncoder) -> set[str]:
    """Names of the BatchNorm statistics that a training forward changes, after the loop's model.train()."""
    before = {name: value.clone() for name, value in encoder.network.named_buffers()}
    encoder.train()
    encoder(images())
    return {name for name, value in encoder.network.named_buffers() if not torch.equal(value, before[name])}


def test_frozen_means_no_gradient_no_graph_and_statistics_that_stand_still() -> None:
    encoder = make_encoder(frozen=True)
    assert moved_statistics(encoder) == set()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(images().requires_grad_()).requires_grad
    assert not any(module.training for module in encoder.modules())


def test_nothing_frozen_moves_all_statistics() -> None:
    encoder = make_encoder()
    assert moved_statistics(encoder) == {name for name, _ in encoder.network.named_buffers()}
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_frozen_through_a_stage_trains_only_what_follows() -> None:
    encoder = make_encoder(frozen_through="layer3")
    moved = moved_statistics(encoder)
    assert moved
    assert all(name.startswith("layer4") for name in moved)
    encoder(images()).sum().backward()
    for name, parameter in encoder.network.named_parameters():
        assert (parameter.grad is not None) == name.startswith("layer4"), name
    encoder.eval()
    assert not encoder.network.layer4.training
    encoder.train()
    assert encoder.network.layer4.training
    assert not encoder.network.layer3.training


def test_frozen_through_an_inner_module_freezes_what_comes_before_it() -> None:
    with torch.device("meta"):
        vgg = make_encoder("vgg16", frozen_through="features.23")
        vit = make_encoder("vit_b_32", frozen_through="encoder.layers.encoder_layer_0")
    trained = [name for name, parameter in vgg.network.named_parameters() if parameter.requires_grad]
    assert trained[:6:2] == ["features.24.weight", "features.26.weight", "features.28.weight"]
    assert len(trained) == 2 * (3 + 2), "three convolutions and two linear layers"
    frozen = {name for name, parameter in vit.network.named_parameters() if not parameter.requires_grad}
    assert {"class_token", "conv_proj.weight", "encoder.pos_embedding"} < frozen
    assert not any("encoder_layer_1." in name for name in frozen)


def test_frozen_through_an_unknown_module_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"frozen_through=layer5 .*layer[1-4]"):
        make_encoder(frozen_through="layer5")


def test_batch_norm_in_eval_mode_still_trains_its_weights() -> None:
    encoder = make_encoder(batch_norm="eval")
    assert moved_statistics(encoder) == set()
    encoder(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert encoder.network.layer1.training


def test_synchronised_batch_norm_alone_is_plain_batch_norm() -> None:
    torch.manual_seed(0)
    plain = make_encoder()
    sync = make_encoder(batch_norm="sync")
    sync.load_state_dict(plain.state_dict())
    for encoder in (plain, sync):
        encoder(images()).sum().backward()
    assert {type(m).__name__ for m in sync.modules() if "Norm" in type(m).__name__} == {"SynchronisedBatchNorm2d"}
    torch.testing.assert_close(dict(sync.named_buffers()), dict(plain.named_buffers()))
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(sync.get_parameter(name).grad, parameter.grad)
