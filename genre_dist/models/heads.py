"""One small MLP per label, on the joint encoding."""

from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Heads(nn.Sequential):
    """`num_genres` separate MLPs: encoding -> hidden... -> 1, with ReLUs in between.

    `kernel` selects the computation: `separate` runs them one by one, `batched` all labels in one product a layer (the
    same parameters, stacked at each call), `auto` batched on a GPU, where launching 19 x 3 small products costs more
    than stacking, and separate elsewhere. (A Sequential, since some versions of torch cannot shard a ModuleList.)
    """

    def __init__(
        self,
        encoding_size: int,
        hidden: tuple[int, ...],
        num_genres: int,
        kernel: Literal["auto", "separate", "batched"],
    ) -> None:
        super().__init__(*(_mlp((encoding_size, *hidden, 1)) for _ in range(num_genres)))
        self.kernel = kernel

    def forward(self, encoding: Tensor) -> Tensor:
        """Map encodings [B, E] to logits [B, G]."""
        if self.kernel == "batched" or (self.kernel == "auto" and encoding.is_cuda):
            return self._batched(encoding)
        return torch.cat([head(encoding) for head in self], dim=1)

    def _batched(self, encoding: Tensor) -> Tensor:
        heads = [cast(nn.Sequential, head) for head in self]
        values = encoding
        for position in range(0, len(heads[0]), 2):  # the linear layers, every second module
            layers = [cast(nn.Linear, head[position]) for head in heads]
            bias = torch.stack([layer.bias for layer in layers])  # [G, out]
            if position == 0:  # all labels share the encoding: one ordinary product
                weight = torch.cat([layer.weight for layer in layers])  # [G * out, E]
                values = F.linear(encoding, weight, bias.flatten()).unflatten(1, bias.shape).transpose(0, 1)
            else:
                weight = torch.stack([layer.weight for layer in layers])  # [G, out, in]
                values = torch.baddbmm(bias[:, None], F.relu(values), weight.transpose(1, 2))  # [G, B, out]
        return values.squeeze(2).T.clone()  # a copy, since FSDP registers hooks on a module's outputs


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(widths):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
