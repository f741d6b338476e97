"""The tracking section: W&B, TensorBoard, and what they show beside metrics."""

from dataclasses import dataclass
from typing import Literal

from genre_dist.config.rules import require


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Views of the record; metrics.jsonl is always written."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online with a key, offline without."""
    project: str = "genre_dist"
    """W&B project."""
    group: str | None = None
    """W&B group, to compare runs side by side; null: the name of the shards' folder."""
    job_type: str | None = None
    """W&B job type; null: `text`, `poster`, `frozen` or `end_to_end`, by what the model reads and trains."""
    tensorboard: bool = False
    """Show the record in TensorBoard too, in the run's folder `tensorboard`. It needs tensorboard."""
    films: int = 8
    """How many samples of each evaluated split are shown with image, text, labels and prediction."""
    ranks_every_steps: int = 100
    """Gather memory and utilisation of every rank so often, into that step's row."""

    def __post_init__(self) -> None:
        require(self.films >= 0, f"tracking.films must be 0 or more, got {self.films}")
        require(self.ranks_every_steps >= 1, "tracking.ranks_every_steps must be at least 1")
