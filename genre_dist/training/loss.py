"""The loss: a sum over samples, which the step divides once by the global number of samples."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from genre_dist.config import LossConfig
from genre_dist.schema import Choose
from genre_dist.stream.manifest import Manifest

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [n, labels], labels [n, labels], weights [n]) -> the sum over samples, fp32: of the mean over labels,
or of the softmax's cross-entropy where a sample has exactly one."""


def loss_sum(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over labels and summed over samples, in fp32 whatever the logits' type.

    logits, labels [n, labels]; weights [n], 0 leaves a sample out.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")  # [n, labels]
    return (each.mean(dim=1) * weights).sum()


def cross_entropy_sum(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of the softmax over labels, summed over samples, in fp32 whatever the logits' type.

    logits, labels [n, labels], one label of each sample being 1; weights [n], 0 leaves a sample out.
    """
    each = -(labels * F.log_softmax(logits.float(), dim=1)).sum(dim=1)  # [n]
    return (each * weights).sum()


def plain_loss(choose: Choose) -> Loss:
    """The loss of val and test rows, whatever the training loss is."""
    return cross_entropy_sum if choose == "one" else loss_sum


def training_loss(config: LossConfig, manifest: Manifest, device: torch.device) -> Loss:
    """The loss a configuration asks for, on these shards. Raises ValueError for one that does not fit their labels."""
    if manifest.declared.labels.choose == "one":
        return _training_loss_of_one(config, manifest, device)
    if config == LossConfig():
        return loss_sum
    positive_weights = class_weights(
        config.class_weights, manifest.genre_counts["train"], manifest.samples("train")
    ).to(device)
    return partial(_configured_sum, config=config, positive_weights=positive_weights)


def _training_loss_of_one(config: LossConfig, manifest: Manifest, device: torch.device) -> Loss:
    if config.kind == "asymmetric":
        raise ValueError(
            f"loss.kind=asymmetric is for any number of labels a sample, and each {manifest.declared.sample} of "
            f"{manifest.folder} has exactly one {manifest.declared.label}: set loss.kind to bce (cross-entropy "
            "there) or focal"
        )
    if config == LossConfig():
        return cross_entropy_sum
    label_weights = softmax_weights(config.class_weights, manifest.genre_counts["train"]).to(device)
    return partial(_configured_cross_entropy, config=config, label_weights=label_weights)


def softmax_weights(kind: str, counts: list[int]) -> Tensor:
    """Weights of the labels where a sample has exactly one, float32 [labels]: samples / (labels x the label's samples),
    as scikit-learn's balanced weights, its root, or 1. A label that no sample has weighs 1."""
    having = torch.tensor(counts, dtype=torch.float64)
    ratio = torch.where(having > 0, having.sum() / (len(counts) * having.clamp(min=1)), 1.0)
    return ratio.pow(_EXPONENTS[kind]).float()


def class_weights(kind: str, counts: list[int], samples: int) -> Tensor:
    """Weights of the positives, float32 [labels]: samples without the label over samples with it, its root, or 1.

    `counts` has the samples of each label among all `samples`. A label that no sample (or every sample) has weighs 1:
    there is nothing to balance.
    """
    having = torch.tensor(counts, dtype=torch.float64)
    ratio = torch.where((having > 0) & (having < samples), (samples - having) / having.clamp(min=1), 1.0)
    return ratio.pow(_EXPONENTS[kind]).float()


def _configured_sum(
    logits: Tensor, labels: Tensor, weights: Tensor, config: LossConfig, positive_weights: Tensor
) -> Tensor:
    labels = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
    positive, negative = _TERMS[config.kind](logits.float(), config)  # [n, labels] each
    each = labels * positive * positive_weights + (1 - labels) * negative
    return (each.mean(dim=1) * weights).sum()


def _configured_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, config: LossConfig, label_weights: Tensor
) -> Tensor:
    """As torch's cross-entropy with `weight` and `label_smoothing`; focal with the softmax's probabilities."""
    labels = labels * (1 - config.label_smoothing) + config.label_smoothing / labels.shape[1]
    each = F.log_softmax(logits.float(), dim=1)  # [n, labels]
    if config.kind == "focal":
        each = (1 - each.exp()) ** config.focal_gamma * each
    return -((labels * label_weights * each).sum(dim=1) * weights).sum()


def _bce(logits: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """-log p and -log(1 - p): the losses of a positive and a negative."""
    return F.softplus(-logits), F.softplus(logits)


def _focal(logits: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Focal loss, Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 4; its alpha is `loss.class_weights`."""
    positive, negative = _bce(logits, config)
    p = logits.sigmoid()
    return (1 - p) ** config.focal_gamma * positive, p**config.focal_gamma * negative


def _asymmetric(logits: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Asymmetric loss, Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, equations 4 to 7.

    The gradient passes through the focusing factors too, as in the paper's analysis.
    """
    p = logits.sigmoid()
    shifted = (p - config.margin).clamp(min=0)
    # shifted is at most 1 - margin, so the logarithm is finite
    negative = -torch.log1p(-shifted) if config.margin > 0 else F.softplus(logits)
    return (1 - p) ** config.gamma_positive * F.softplus(-logits), shifted**config.gamma_negative * negative


_EXPONENTS = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}
_TERMS = {"bce": _bce, "focal": _focal, "asymmetric": _asymmetric}
