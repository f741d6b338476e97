"""The data section: shards, batches, augmentation."""

from dataclasses import dataclass
from typing import Literal

from genre_dist.config.rules import require

ALWAYS_TOLERATED = 8
"""Number of samples of an epoch or a split that may be unreadable, whatever its size."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards, in which batches, with which augmentation."""

    shards: str = "shards/default"
    """Folder of packed shards (made by `genre-dist pack`), or its URL: https://, s3://, ..."""
    global_batch: int = 64
    """Samples per optimizer step over all ranks together."""
    micro_batch: int | Literal["auto"] = "auto"
    """Samples per forward pass on one rank. `auto`: the largest divisor of the rank's share that the planner finds to
    fit the GPU, halved on all ranks if memory runs out; without a GPU, the largest up to 32."""
    last_batch: Literal["keep", "drop"] = "keep"
    """The samples left over at the end of an epoch: a smaller step, or left out (others each epoch)."""
    image_size: int = 224
    """Side of the square the image encoder sees."""
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Training crop: share of the image's area. (1, 1): no crops."""
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    """Training crop: range of width over height."""
    flip: bool = False
    """Mirror half of the training images."""
    max_tokens: int = 256
    """Longer texts are cut."""
    block: int = 32
    """Samples of a lane that are permuted together; larger mixes better, smaller reads more sequentially."""
    by_length: float = 0.0
    """How far the samples of a step are of similar text length, 0 to 1: less padding, less random batches."""
    workers: int = 2
    """Reader processes per rank; 0 reads in the training process."""
    prefetch: int = 2
    """Micro-batches read ahead of those in use: the bound on samples in flight."""
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Where images are decoded. `auto`: on the CPU, or on the GPU if a rank has fewer than two cores; where a GPU
    cannot, or torchcodec is not installed, the CPU does it. Edges of colours differ between the two, by less than 2 of
    255 in the mean."""
    cache_dir: str | None = None
    """For shards behind a URL: a folder on this node's disk that keeps what was read, shared by its ranks and runs."""
    cache_gb: float = 50.0
    """How much `cache_dir` may hold, in 10^9 bytes; what was not used for longest goes first."""
    max_bad_fraction: float = 0.01
    """Stop when more than this share of an epoch, or of a split in evaluation, could not be read (and more than 8)."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "image_size", "max_tokens", "block", "prefetch"):
            require(getattr(self, name) >= 1, f"data.{name} must be at least 1, got {getattr(self, name)}")
        require(self.micro_batch == "auto" or self.micro_batch >= 1, "data.micro_batch must be auto or at least 1")
        require(0 <= self.by_length <= 1, f"data.by_length must be in [0, 1], got {self.by_length}")
        require(self.workers >= 0, f"data.workers must be 0 or more, got {self.workers}")
        require(self.cache_gb >= 0.01, f"data.cache_gb must be at least 0.01, got {self.cache_gb}")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"data.crop_scale must be 0 < low <= high <= 1, got {self.crop_scale}")
        low, high = self.crop_ratio
        require(0 < low <= high, f"data.crop_ratio must be 0 < low <= high, got {self.crop_ratio}")
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction must be in [0, 1]")

    def tolerated_bad(self, samples: int) -> float:
        """The number of unreadable samples, of so many, above which a run stops."""
        return max(ALWAYS_TOLERATED, self.max_bad_fraction * samples)

    @property
    def shows_whole_posters(self) -> bool:
        """Whether training sees images as evaluation does: neither cropped nor mirrored."""
        return self.crop_scale == (1.0, 1.0) and not self.flip
