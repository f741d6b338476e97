"""How fast and how well used: floating-point work of a sample, the device's peak, peak memory."""

import resource

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from genre_dist.config import Config

PEAK_TFLOPS = {
    # dense tensor-core bf16 (fp16 for V100 and T4, which have no bf16), from the vendor's data sheets
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A40": 149.7,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
_FP32_SHARE = {"H200": 0.068, "H100": 0.068, "A100": 0.0625}  # of the bf16 peak, without TF32


def peak_flops(device: torch.device, precision: str) -> float:
    """Floating-point operations per second at best, or 0 where the device or its peak in this precision is unknown."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    known = next((key for key in PEAK_TFLOPS if key in name), None)
    if known is None:
        return 0.0
    share = 1.0 if precision == "bf16" else _FP32_SHARE.get(known.split()[0], 0.0)
    return PEAK_TFLOPS[known] * 1e12 * share


def forward_flops(model: nn.Module, *inputs: torch.Tensor | None) -> float:
    """Floating-point operations of one forward pass, 2 for a multiply-add.

    The counter of torch sees convolutions and products; recurrent layers count as nothing there and are added by hand:
    per layer, direction and token gates * hidden * (inputs + hidden) multiply-adds.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    flops = float(counter.get_total_flops())
    tokens = next((tensor.numel() for tensor in inputs if tensor is not None and not tensor.is_floating_point()), 0)
    for layer in model.modules():
        if isinstance(layer, nn.RNNBase):
            flops += 2 * tokens * sum(weight.numel() for name, weight in layer.named_parameters() if "weight" in name)
    return flops


def training_flops(model: nn.Module, config: Config, device: torch.device) -> float:
    """Floating-point operations of one training sample with a text of 55 tokens: forward, and twice that backward."""
    size = config.data.image_size
    images = torch.zeros(1, 3, size, size, device=device) if config.model.uses_poster else None
    tokens = torch.zeros(1, 55, dtype=torch.long, device=device) if config.model.uses_text else None
    was_training = model.training
    model.eval()
    forward = forward_flops(model, images, tokens, None if tokens is None else torch.tensor([55]))
    model.train(was_training)
    return 3 * forward


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
