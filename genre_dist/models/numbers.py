"""The encoder of numbers: a small MLP over standardised values and marks of missing ones."""

import contextlib
from typing import Self

import torch
from torch import Tensor, nn

from genre_dist.config.model import NumbersConfig


class NumbersEncoder(nn.Module):
    """Numbers -> encoding [encoding_size]: two layers over the values and, for each, whether it is missing."""

    def __init__(self, config: NumbersConfig, numbers: int) -> None:
        super().__init__()
        self.frozen, self.inputs, self.encoding_size = config.frozen, numbers, config.hidden
        self.layers = nn.Sequential(
            nn.Linear(2 * numbers, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.hidden), nn.ReLU()
        )
        self.freeze(config.frozen)

    def freeze(self, frozen: bool) -> None:
        """Freeze the encoder, or train it."""
        self.frozen = frozen
        self.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, except that a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, numbers: Tensor) -> Tensor:
        """Map standardised numbers [B, numbers], NaN where one is missing, to encodings [B, encoding_size]."""
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            missing = numbers.isnan()
            encoding: Tensor = self.layers(torch.cat([numbers.nan_to_num(0.0), missing.to(numbers.dtype)], dim=1))
            return encoding
