"""From the global batch to each rank's share, micro-batch and accumulation."""

from typing import NamedTuple

from genre_dist.config.data import DataConfig
from genre_dist.config.rules import require


class Batches(NamedTuple):
    """The parts of a global batch: per_rank = micro * accumulation, global = per_rank * world."""

    per_rank: int
    micro: int
    accumulation: int


def derive_batches(data: DataConfig, world: int) -> Batches:
    """Derive the rank's share, the micro-batch and the accumulation from the global batch.

    Raises ValueError if the world does not divide the global batch, or the micro-batch the rank's share.
    """
    total = data.global_batch
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    require(
        total % world == 0,
        f"{world} ranks cannot share data.global_batch={total} evenly; use {_nearest(divisors, world)} ranks, "
        f"or a global batch that is a multiple of {world}, such as {max(1, round(total / world)) * world}",
    )
    per_rank = total // world
    if data.micro_batch == "auto":
        micro = max(n for n in range(1, min(per_rank, 32) + 1) if per_rank % n == 0)
    else:
        micro = data.micro_batch
        require(
            per_rank % micro == 0,
            f"data.micro_batch={micro} does not divide the rank's share of {per_rank} (global batch {total} over "
            f"{world} ranks)",
        )
    return Batches(per_rank, micro, per_rank // micro)


def _nearest(candidates: list[int], wanted: int) -> int:
    return min(candidates, key=lambda n: (abs(n - wanted), n))
