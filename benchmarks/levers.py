"""What each memory lever saves and costs on this machine: bytes kept for the backward pass, and time of a step.

python benchmarks/levers.py            ResNet152 + LSTM at 224 pixels (some minutes on two CPU cores)
python benchmarks/levers.py --quick    ResNet50 at 64 pixels

Bytes are those of the tensors that wait for the backward pass, per sample, counted with autograd's hooks (parameters
left out, every storage once): a GPU keeps the same, give or take its kernels' own workspaces. What `selective` keeps in
its own store is invisible to the hooks and counted as convolution outputs. Times are of one step, forward and backward,
the levers taking turns.
"""

import time
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from common import Row, measured, options, report
from torch import Tensor, nn

from genre_dist.config import ModelConfig, PosterConfig, TextConfig, TrainConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.levers import pull_levers
from genre_dist.stream.device_feed import FieldInput
from genre_dist.training.loss import loss_sum

WORDS, TOKENS, GENRES = 1000, 55, 19
LEVERS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    # name: (train settings, settings of both encoders, bf16)
    "none": ({"channels_last": False}, {}, False),
    "channels_last": ({}, {}, False),
    "bf16": ({}, {}, True),
    "checkpointing: selective": ({"activation_checkpointing": "selective"}, {}, False),
    "checkpointing: blocks": ({"activation_checkpointing": "blocks"}, {}, False),
    "checkpointing: stages": ({"activation_checkpointing": "stages"}, {}, False),
    "bf16 + checkpointing: blocks": ({"activation_checkpointing": "blocks"}, {}, True),
    "frozen encoders": ({}, {"frozen": True}, False),
}


class Case:
    """A model with a lever pulled, and batches for it."""

    def __init__(self, name: str, arch: str, size: int, hidden: int) -> None:
        train, encoders, self.bf16 = LEVERS[name]
        self.selective = train.get("activation_checkpointing") == "selective"
        config = ModelConfig(
            text=TextConfig(hidden=hidden, **encoders), poster=PosterConfig(arch=arch, weights="none", **encoders)
        )
        torch.manual_seed(0)
        self.model = GenreClassifier(config, GENRES, size, WORDS, None).train()
        pull_levers(self.model, TrainConfig(**train), torch.device("cpu"))
        self.format = torch.channels_last if train.get("channels_last", True) else torch.contiguous_format
        self.size = size

    def loss(self, n: int) -> Tensor:
        images = torch.randn(n, 3, self.size, self.size).to(memory_format=self.format)
        text = FieldInput(torch.randint(2, WORDS, (n, TOKENS)), np.full(n, TOKENS))
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            logits = self.model({"poster": FieldInput(images), "text": text})
        return loss_sum(logits, torch.zeros(n, GENRES), torch.ones(n))

    def seconds(self, n: int) -> float:
        """Time of a step of n samples."""
        began = time.perf_counter()
        self.loss(n).backward()
        self.model.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    def bytes_per_sample(self) -> int:
        """What a second sample adds to what is kept."""
        return self._kept(2) - self._kept(1)

    def _kept(self, n: int) -> int:
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, Tensor] = {}  # held on to, so that no address is used twice

        def note(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        convolutions = [m for m in self.model.modules() if isinstance(m, nn.Conv2d) and self.selective]
        hooks = [convolution.register_forward_hook(lambda *told: note(told[2])) for convolution in convolutions]
        with warnings.catch_warnings(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            warnings.simplefilter("ignore", FutureWarning)  # that the hooks do not see the store
            self.loss(n)
        for hook in hooks:
            hook.remove()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def main() -> None:
    arguments = options(__doc__ or "")
    arch, size, hidden, batch, rounds = (
        ("resnet50", 64, 128, 8, 3) if arguments.quick else ("resnet152", 224, 512, 4, 5)
    )
    what = f"{arch} + LSTM, {size} px"
    cases = {name: Case(name, arch, size, hidden) for name in LEVERS}
    kept = {name: case.bytes_per_sample() for name, case in cases.items()}
    for case in cases.values():
        case.seconds(batch)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name].append(case.seconds(batch))
    rows = []
    for name in cases:
        rows.append(Row(claim=f"{what}, {name}: kept for the backward pass", value=kept[name] / 1e6, unit="MB/sample"))
        ratio = [took / plain for took, plain in zip(times[name], times["channels_last"], strict=True)]
        rows.append(measured(f"{what}, {name}: time of a step over channels_last alone", ratio, "ratio"))
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
