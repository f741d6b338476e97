"""Activation checkpointing changes what is kept for the backward pass and nothing else."""

from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
import torchvision
from helpers import small_resnet, tiny_network
from torch import Tensor, nn

from genre_dist.models.batchnorm import no_statistics
from genre_dist.models.recompute import Kind, recompute_activations, regions

KINDS = [kind for kind in get_args(Kind) if kind != "none"]


def network(kind: Any) -> nn.Module:
    """A small ResNet whose blocks are those of resnet50, with dropout in one of them."""
    torch.manual_seed(0)
    net = small_resnet()
    net.layer2[0].relu = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5))
    recompute_activations(net, kind)
    return net.train()


def learn(net: nn.Module, precision: str) -> dict[str, Tensor]:
    """Two accumulated batches, one of them blank: gradients, buffers and outputs."""
    torch.manual_seed(1)
    found = {}
    for number, blank in enumerate((False, True, False)):
        images = torch.randn(3, 3, 32, 32)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with autocast, no_statistics([net]) if blank else nullcontext():
            output = net(images)
        output.float().square().mean().backward()
        found[f"output {number}"] = output.detach()
    found |= {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    return found | {name: buffer.clone() for name, buffer in net.named_buffers()}


def kept_bytes(net: nn.Module) -> int:
    """Bytes that wait for the backward pass of two images, parameters left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        net(torch.randn(2, 3, 64, 64))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Tensor]]:
    return {precision: learn(network("none"), precision) for precision in ("fp32", "bf16")}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_gradients_and_batch_norm_statistics_are_the_same_bit_for_bit(
    kind: Kind, precision: str, plain: dict[str, dict[str, Tensor]]
) -> None:
    found = learn(network(kind), precision)
    assert found.keys() == plain[precision].keys()
    different = [name for name, tensor in found.items() if not tensor.equal(plain[precision][name])]
    assert different == []


@pytest.mark.parametrize("kind", ["stages", "blocks"])
def test_less_waits_for_the_backward_pass(kind: Kind) -> None:
    assert kept_bytes(network(kind)) < 0.5 * kept_bytes(network("none"))


def test_names_and_shapes_stay_so_that_checkpoints_fit() -> None:
    expected = {name: tensor.shape for name, tensor in network("none").state_dict().items()}
    assert {name: tensor.shape for name, tensor in network("blocks").state_dict().items()} == expected


def test_without_gradients_nothing_is_kept_or_computed_twice() -> None:
    net = network("blocks").eval()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    net.get_submodule("layer1.0.conv1").register_forward_hook(count)
    with torch.inference_mode():
        net(torch.randn(1, 3, 32, 32))
    assert calls == 1


@pytest.mark.parametrize(
    ("arch", "blocks", "stages"),
    [("resnet18", 8, 4), ("resnet152", 50, 4), ("convnext_tiny", 19, 4), ("vit_b_16", 12, 1), ("swin_t", 15, 4)],
)
def test_it_finds_the_blocks_and_stages_of_torchvisions_networks(arch: str, blocks: int, stages: int) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(arch, weights=None)
    assert (len(regions(net, "blocks")), len(regions(net, "stages"))) == (blocks, stages)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.activation_checkpointing=blocks finds no blocks"):
        recompute_activations(tiny_network(), "blocks")
