"""The loss section: the loss of a label's logit, class weights, and label smoothing."""

from dataclasses import dataclass
from typing import Literal

from genre_dist.config.rules import require


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The training loss. The loss of val and test rows is plain `bce` whatever is set here, so runs can be compared."""

    kind: Literal["bce", "focal", "asymmetric"] = "bce"
    """Binary cross-entropy; `focal` (Lin et al. 2017) and `asymmetric` (Ridnik et al. 2021) reduce the weight of easy
    examples. Where a sample has exactly one label, `bce` is the softmax's cross-entropy and `focal` its focal form."""
    focal_gamma: float = 2.0
    """`focal`: how much less easy examples weigh; 0 is plain bce."""
    gamma_positive: float = 0.0
    """`asymmetric`: how much less easy positives weigh."""
    gamma_negative: float = 4.0
    """`asymmetric`: how much less easy negatives weigh; a sample lacks most labels."""
    margin: float = 0.05
    """`asymmetric`: negatives with a probability below this count as nothing."""
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    """A label's positives weigh (samples without it) / (samples with it), counted over the shards' train split
    (`balanced`), or the square root of that (`sqrt`). With exactly one label a sample, a label weighs (samples) /
    (labels x samples with it)."""
    label_smoothing: float = 0.0
    """Labels 0 and 1 become s/2 and 1 - s/2 (Szegedy et al. 2015, for two classes); with exactly one of n labels, s/n
    and 1 - s + s/n."""

    def __post_init__(self) -> None:
        for name in ("focal_gamma", "gamma_positive", "gamma_negative"):
            require(getattr(self, name) >= 0, f"loss.{name} must not be negative, got {getattr(self, name)}")
        require(
            self.margin == 0 or 1e-3 <= self.margin < 1, f"loss.margin must be 0 or in [0.001, 1), got {self.margin}"
        )
        require(0 <= self.label_smoothing < 1, f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing}")
