"""FLOP of a training sample, the device's peak FLOP/s, and its peak memory."""

import resource

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genre_dist.config import Config
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.pretrained_text import PretrainedText
from genre_dist.models.text import TextEncoder
from genre_dist.planner.gpu_specs import find_card
from genre_dist.planner.sizes import TYPICAL_TOKENS


def peak_flops(device: torch.device, precision: str) -> float:
    """Peak FLOP/s of a device, or 0 if the device is unknown or a slice of one.

    fp32 counts as TF32 if torch allows that for convolutions, which are nearly all of the work.
    """
    if device.type != "cuda":
        return 0.0
    card = find_card(torch.cuda.get_device_name(device))
    if card is None:
        return 0.0
    tf32 = precision == "fp32" and torch.backends.cudnn.allow_tf32
    return card.flops("tf32" if tf32 else precision)


def training_flops(model: GenreClassifier, config: Config, device: torch.device) -> float:
    """FLOP of one training sample with a text of typical length, 2 for a multiply-add.

    Gradients of frozen parts do not count. torch's counter sees convolutions and products but no recurrent layers,
    which are added by hand: per layer, direction and token gates * hidden * (inputs + hidden) multiply-adds forward and
    twice that backward. Call this before the model is recomputed or compiled.
    """
    was_training = model.training
    model.eval()  # BatchNorm's statistics stay as they are
    flops, size, trained = 0.0, config.data.image_size, False
    for encoder in model.image_encoders.values():
        flops += _counted(encoder, torch.zeros(1, 3, size, size, device=device))
        trained = trained or any(p.requires_grad for p in encoder.parameters())
    for text in model.text_encoders.values():
        if isinstance(text, PretrainedText):
            flops += _counted(text, *text_of(1, TYPICAL_TOKENS, device))
        else:
            flops += TYPICAL_TOKENS * sum(recurrent_flops(text))
        trained = trained or not text.frozen
    flops += _counted(model.heads, torch.zeros(1, model.encoding_size, device=device, requires_grad=trained))
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return flops


def text_of(samples: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens int64 [samples, length] and lengths of texts without content, as a text encoder takes them."""
    host = device if device.type == "meta" else torch.device("cpu")
    return torch.zeros(samples, length, dtype=torch.long, device=device), torch.full((samples,), length, device=host)


def _counted(part: nn.Module, *inputs: Tensor) -> float:
    """FLOP of a forward pass, and of the backward pass if there is one."""
    with FlopCounterMode(display=False) as counter:
        output = part(*inputs)
        if output.requires_grad:
            output.sum().backward()
    return float(counter.get_total_flops())


def recurrent_flops(text: TextEncoder) -> tuple[float, float]:
    """FLOP per token, forward and backward, without the gradient of frozen word vectors."""
    products = [weight for name, weight in text.rnn.named_parameters() if "weight" in name]
    forward = 2.0 * sum(weight.numel() for weight in products)
    if text.frozen:
        return forward, 0.0
    bottom = 2 * sum(w.numel() for name, w in text.rnn.named_parameters() if name.startswith("weight_ih_l0"))
    return forward, 2 * forward - (0 if text.embedding.weight.requires_grad else bottom)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
