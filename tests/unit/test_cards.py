"""The table of GPUs: which names mean which card, and figures that agree with one another."""

import subprocess
import sys

import pytest

from genre_dist.planner.gpu_specs import CARDS, GpuSpec, card_named, find_card


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA H800", "H800"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe"),
        ("A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("NVIDIA A800-SXM4-80GB", "A800"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("Tesla V100-PCIE-16GB", "V100 PCIe"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
    ],
)
def test_names_as_torch_reports_them(device: str, name: str) -> None:
    card = find_card(device)
    assert card is not None
    assert card.name == name


@pytest.mark.parametrize(
    ("typed", "name"),
    [("h100", "H100"), ("RTX4090", "RTX 4090"), ("rtx-4090", "RTX 4090"), ("a6000", "RTX A6000"), ("l40s", "L40S")],
)
def test_names_as_people_type_them(typed: str, name: str) -> None:
    assert card_named(typed).name == name


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4080 SUPER",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "NVIDIA GeForce RTX 2080 with Max-Q Design",
        "NVIDIA A10-24Q",  # virtual
        "NVIDIA RTX A4000",
        "Quadro RTX 6000",  # three generations before the Ada
        "Tesla V100-FHHL-16GB",
        "RTX",
        "80GB",
        "",
    ],
)
def test_variants_slices_and_parts_of_names_are_unknown(device: str) -> None:
    assert find_card(device) is None


def test_an_unknown_card_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"--time H1000: no such card is known; nearest: .*H100"):
        card_named("H1000")
    with pytest.raises(ValueError, match="nearest: RTX 4090,"):
        card_named("4090")


@pytest.mark.parametrize("card", CARDS, ids=[card.name for card in CARDS])
def test_figures_of_a_card_agree(card: GpuSpec) -> None:
    assert find_card(card.name) is card
    assert card.tf32 == 0 or card.half / card.tf32 == pytest.approx(2, rel=0.02)
    assert card.fp32 <= (card.tf32 or card.half)
    assert card.link >= min(card.host, 128)  # NVLink, else PCIe
    assert 100 < card.bandwidth < 10_000
    assert 10 < card.memory_gib < 300


def test_a_card_without_tf32_computes_fp32_outside_its_tensor_cores() -> None:
    card = card_named("V100")
    assert not card.has_bf16
    assert card.flops("tf32") == card.flops("fp32") == pytest.approx(15.7e12)


def test_the_table_needs_no_torch() -> None:
    code = "import sys, genre_dist.planner.gpu_specs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
