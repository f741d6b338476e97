"""Peak figures of GPUs from their vendor's data sheets; this module does not import torch.

Peaks are dense (half of the figures "with sparsity") and accumulate in fp32, as training does: on GeForce cards that is
half of what is advertised for fp16. Sources, each by NVIDIA: data sheets of A10, A10G, A30, A40, A100, A800, L4, L40,
L40S, H20, H100, H200, H800, GH200, T4, V100, RTX A6000, RTX 6000 Ada; HGX and "Blackwell Architecture" (B200, B300,
GB200, GB300: figures of a whole board or rack, divided); white papers "Ampere GA102" (RTX 3090), "Ada" (RTX 3090 Ti,
4080, 4090) and "RTX Blackwell" (RTX 5080, 5090). Cards without published tensor peaks are left out: RTX 4090 D and
other variants, laptops' chips, slices (MIG), virtual GPUs.
"""

import difflib
import re
from typing import NamedTuple


class GpuSpec(NamedTuple):
    """A GPU's data sheet: peaks in TFLOPS, bandwidths in 10^9 bytes a second."""

    name: str
    words: str
    """The words of its names; a name may lack those with a question mark, and has no others."""
    half: float
    """Peak of the tensor cores in bf16; in fp16 if the card has no bf16."""
    tf32: float
    """Peak of the tensor cores in TF32; 0 without TF32."""
    fp32: float
    """Peak without tensor cores."""
    memory_gib: float
    """Usable memory: GDDR6 with error correction has a sixteenth less than the data sheet says."""
    bandwidth: float
    """Bandwidth of the memory."""
    link: float
    """Bandwidth to the other GPUs, both directions together: NVLink with a switch or full mesh, else PCIe. Bridges that
    join two or four cards do not count."""
    host: float
    """Bandwidth to the host, both directions together."""

    @property
    def has_bf16(self) -> bool:
        """Whether the tensor cores have bf16, which came with TF32."""
        return self.tf32 > 0

    def flops(self, precision: str) -> float:
        """Peak in FLOP/s in bf16, tf32 or fp32; a card without TF32 computes in fp32 instead."""
        peaks = {"bf16": self.half, "tf32": self.tf32 or self.fp32, "fp32": self.fp32}
        return peaks[precision] * 1e12


CARDS = (
    #    name, words, half, tf32, fp32, memory, bandwidth, link, host
    GpuSpec("GB300", "gb300", 2500, 1250, 80, 277, 8000, 1800, 256),
    GpuSpec("B300", "b300 sxm6? ac?", 2250, 1125, 75, 268, 7700, 1800, 256),
    GpuSpec("GB200", "gb200", 2500, 1250, 80, 185, 8000, 1800, 256),
    GpuSpec("B200", "b200", 2250, 1125, 75, 179, 7700, 1800, 128),
    GpuSpec("GH200", "gh200 480gb? 96gb? hbm3?", 989, 494, 67, 95, 4000, 900, 900),
    GpuSpec("H200", "h200 sxm? sxm5? 141gb? hbm3e?", 989, 494, 67, 140, 4800, 900, 128),
    GpuSpec("H200 NVL", "h200 nvl", 835, 418, 60, 140, 4800, 128, 128),
    GpuSpec("H100", "h100 sxm? sxm5? 80gb? hbm3?", 989, 494, 67, 79.5, 3350, 900, 128),
    GpuSpec("H100 NVL", "h100 nvl", 835, 418, 60, 93.5, 3900, 128, 128),
    GpuSpec("H100 PCIe", "h100 pcie 80gb?", 756, 378, 51, 79.5, 2000, 128, 128),
    GpuSpec("H800", "h800 sxm? sxm5? 80gb? hbm3?", 989, 494, 67, 79.5, 3350, 400, 128),
    GpuSpec("H20", "h20 sxm? sxm5? 96gb? hbm3?", 148, 74, 44, 95.5, 4000, 900, 128),
    GpuSpec("A100", "a100 sxm? sxm4? 80gb?", 312, 156, 19.5, 79.5, 2039, 600, 64),
    GpuSpec("A100 40GB", "a100 sxm? sxm4? 40gb", 312, 156, 19.5, 39.5, 1555, 600, 64),
    GpuSpec("A100 PCIe", "a100 pcie 80gb?", 312, 156, 19.5, 79.5, 1935, 64, 64),
    GpuSpec("A100 PCIe 40GB", "a100 pcie 40gb", 312, 156, 19.5, 39.5, 1555, 64, 64),
    GpuSpec("A800", "a800 sxm? sxm4? 80gb?", 312, 156, 19.5, 79.5, 2039, 400, 64),
    GpuSpec("A800 PCIe", "a800 pcie 80gb?", 312, 156, 19.5, 79.5, 1935, 64, 64),
    GpuSpec("A40", "a40", 149.7, 74.8, 37.4, 45, 696, 64, 64),
    GpuSpec("A30", "a30", 165, 82, 10.3, 23.5, 933, 64, 64),
    GpuSpec("A10", "a10", 125, 62.5, 31.2, 22.5, 600, 64, 64),
    GpuSpec("A10G", "a10g", 70, 35, 35, 22, 600, 64, 64),
    GpuSpec("L40S", "l40s", 362, 183, 91.6, 45, 864, 64, 64),
    GpuSpec("L40", "l40", 181, 90.5, 90.5, 45, 864, 64, 64),
    GpuSpec("L4", "l4", 121, 60, 30.3, 22.5, 300, 64, 64),
    GpuSpec("V100", "v100 sxm? sxm2? 16gb?", 125, 0, 15.7, 15.5, 900, 300, 32),
    GpuSpec("V100 32GB", "v100 sxm? sxm2? sxm3? 32gb", 125, 0, 15.7, 31.5, 900, 300, 32),
    GpuSpec("V100 PCIe", "v100 pcie 16gb?", 112, 0, 14, 15.5, 900, 32, 32),
    GpuSpec("V100 PCIe 32GB", "v100 pcie 32gb", 112, 0, 14, 31.5, 900, 32, 32),
    GpuSpec("T4", "t4", 65, 0, 8.1, 14.5, 320, 32, 32),
    GpuSpec("RTX 6000 Ada", "rtx 6000 ada generation?", 364, 182, 91.1, 47.5, 960, 64, 64),
    GpuSpec("RTX A6000", "rtx? a6000", 154.8, 77.4, 38.7, 47.5, 768, 64, 64),
    GpuSpec("RTX 5090", "rtx 5090", 209.5, 104.8, 104.8, 31.5, 1792, 128, 128),
    GpuSpec("RTX 5080", "rtx 5080", 112.6, 56.3, 56.3, 15.5, 960, 128, 128),
    GpuSpec("RTX 4090", "rtx 4090", 165.2, 82.6, 82.6, 23.5, 1008, 64, 64),
    GpuSpec("RTX 4080", "rtx 4080", 97.5, 48.7, 48.7, 15.5, 717, 64, 64),
    GpuSpec("RTX 3090 Ti", "rtx 3090 ti", 80, 40, 40, 23.5, 1008, 64, 64),
    GpuSpec("RTX 3090", "rtx 3090", 71, 35.6, 35.6, 23.5, 936, 64, 64),
)
MAKERS = ("nvidia", "geforce", "tesla")


def find_card(device_name: str) -> GpuSpec | None:
    """The card of a name, written as `torch.cuda.get_device_name` or a user does; None if the table lacks it.

    Every word counts: "RTX 4090 D", "RTX 4090 Laptop GPU" and "A100-SXM4-40GB MIG 3g.20gb" are not the cards they
    begin with.
    """
    said = set(_words(device_name))
    for card in CARDS:
        words = card.words.split()
        needed = {word for word in words if not word.endswith("?")}
        if needed <= said <= {word.removesuffix("?") for word in words}:
            return card
    return None


def card_named(name: str) -> GpuSpec:
    """The card of a name. Raises ValueError with the nearest known names if there is none."""
    card = find_card(name)
    if card is None:
        known = {" ".join(_words(card.name)): card.name for card in CARDS}
        close = difflib.get_close_matches(" ".join(_words(name)), known, n=4, cutoff=0.0)
        raise ValueError(f"--time {name}: no such card is known; nearest: {', '.join(known[word] for word in close)}")
    return card


def _words(name: str) -> list[str]:
    """Lower-case words without the vendor's; RTX is separated from its number."""
    apart = re.sub(r"\brtx(?=\w)", "rtx ", re.sub(r"[-_ ]+", " ", name.lower()))
    return [word for word in apart.split() if word not in MAKERS]
