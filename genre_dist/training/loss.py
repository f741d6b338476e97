"""The loss: a sum over samples, to be divided once by the true global count."""

import torch.nn.functional as F
from torch import Tensor


def loss_sum(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over genres and summed over samples, in fp32 whatever the logits' type.

    logits, labels [n, genres]; weights [n], 0 leaves a sample out.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")  # [n, genres]
    return (each.mean(dim=1) * weights).sum()
