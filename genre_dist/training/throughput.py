"""How fast and how well used: floating-point work of a sample, the device's peak, peak memory."""

import re
import resource

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genre_dist.config import Config
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.text import TextEncoder

PEAK_TFLOPS = {
    # dense tensor-core bf16 (fp16 for V100 and T4, which have no bf16), from the vendor's data sheets
    "H200": 989.0,
    "B200": 2250.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
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
TOKENS = 55
"""Length of a text in these counts: the median overview of the real films, rounded up."""
_FP32_SHARE = {"H200": 0.068, "H100": 0.068, "A100": 0.0625}  # of the bf16 peak, without TF32
_TF32_SHARE = {"B200": 0.5, "H200": 0.5, "H100": 0.5, "A100": 0.5, "L40S": 0.5, "L4": 0.5, "A10": 0.5, "A40": 0.5}


def peak_flops(device: torch.device, precision: str) -> float:
    """Floating-point operations per second at best, or 0 where the device or its peak in this precision is unknown."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    known = next((key for key in PEAK_TFLOPS if re.search(rf"\b{key}\b", name)), None)
    if known is None:
        return 0.0
    tf32 = precision == "tf32" or torch.backends.cudnn.allow_tf32  # convolutions, nearly all of the work
    share = 1.0 if precision == "bf16" else (_TF32_SHARE if tf32 else _FP32_SHARE).get(known.split()[0], 0.0)
    return PEAK_TFLOPS[known] * 1e12 * share


def training_flops(model: GenreClassifier, config: Config, device: torch.device) -> float:
    """Floating-point operations of one training sample with a text of 55 tokens, 2 for a multiply-add.

    What a frozen part spares is not counted. The counter of torch sees convolutions and products; recurrent layers
    count as nothing there and are added by hand: per layer, direction and token gates * hidden * (inputs + hidden)
    multiply-adds forward and twice that backward. Count before anything is recomputed or compiled.
    """
    was_training = model.training
    model.eval()  # BatchNorm's statistics stay as they are
    flops, size, trained = 0.0, config.data.image_size, False
    if model.poster is not None:
        images = torch.zeros(1, 3, size, size, device=device)
        flops += _counted(model.poster, images)
        trained = any(p.requires_grad for p in model.poster.parameters())
    if model.text is not None:
        flops += TOKENS * _recurrent_flops(model.text)
        trained = trained or not model.text.frozen
    width = sum(part.encoding_size for part in (model.text, model.poster) if part is not None)
    flops += _counted(model.heads, torch.zeros(1, width, device=device, requires_grad=trained))
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return flops


def _counted(part: nn.Module, inputs: Tensor) -> float:
    """Operations of a forward pass, and of the backward pass if there is one."""
    with FlopCounterMode(display=False) as counter:
        output = part(inputs)
        if output.requires_grad:
            output.sum().backward()
    return float(counter.get_total_flops())


def _recurrent_flops(text: TextEncoder) -> float:
    """Operations a token; without the gradient of frozen word vectors."""
    products = [weight for name, weight in text.rnn.named_parameters() if "weight" in name]
    forward = 2 * sum(weight.numel() for weight in products)
    if text.frozen:
        return forward
    bottom = 2 * sum(w.numel() for name, w in text.rnn.named_parameters() if name.startswith("weight_ih_l0"))
    return 3 * forward - (0 if text.embedding.weight.requires_grad else bottom)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
