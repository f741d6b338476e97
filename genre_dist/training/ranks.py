"""Memory and utilisation of every rank, gathered at intervals, and messages from rank 0."""

import resource
import time
from contextlib import suppress
from pathlib import Path

import torch

from genre_dist.parallel.gpu import crowded, free_memory
from genre_dist.parallel.world import World
from genre_dist.planner.memory import CONTEXT_BYTES


class Meter:
    """This process's use of its CPU and GPU since it was last read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clock, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """CPU in percent of one core, resident memory; on a GPU also its memory and utilisation in percent."""
        clock, cpu = time.monotonic(), time.process_time()
        usage = {
            "rank_cpu_percent": 100 * (cpu - self._cpu) / max(1e-9, clock - self._clock),
            "rank_memory_bytes": float(_resident_bytes()),
        }
        self._clock, self._cpu = clock, cpu
        if self.device.type == "cuda":
            usage["rank_gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
            # NVIDIA's library reports utilisation. It may be missing, or refuse (a slice of a GPU, a virtual one): its
            # NVMLError derives from Exception alone, torch's own errors are of several kinds
            with suppress(Exception):
                usage["rank_gpu_percent"] = float(torch.cuda.utilization(self.device))
        return usage


def gather_ranks(meter: Meter, world: World) -> dict[str, list[float]] | None:
    """Each number of every rank, in rank order, on rank 0; None elsewhere."""
    gathered = world.gather(meter.read())
    if gathered is None:
        return None
    return {key: [usage[key] for usage in gathered] for key in gathered[0] if all(key in usage for usage in gathered)}


def say(world: World, message: str) -> None:
    """Print a message on rank 0."""
    if world.is_first:
        print(message, flush=True)


def memory_to_plan(world: World) -> int:
    """Bytes of its GPU that a rank's plan may use, with the CUDA context as the planner counts it.

    The context exists by now and is not free, so it is added. A message warns if other processes fill the card.
    """
    if problem := crowded(world.device):
        print(
            f"rank {world.rank}: {problem}. Micro-batches are planned for what is free, of one sample if nothing fits; "
            "end those processes, or choose other cards with CUDA_VISIBLE_DEVICES",
            flush=True,
        )
    return free_memory(world.device, world.sharing) + CONTEXT_BYTES


def _resident_bytes() -> int:
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
