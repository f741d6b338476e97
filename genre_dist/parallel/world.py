"""The ranks of a run: who this process is, on which device, and how ranks add up and gather."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """One process among `size`. With size 1 every collective is the identity and no process group is needed."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over all ranks, in place; it must lie on the world's device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """True on all ranks if it is true on one."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item() > 0)

    def gather(self, thing: Any) -> list[Any] | None:
        """The things of all ranks in rank order, on rank 0; None elsewhere."""
        if self.size == 1:
            return [thing]
        gathered: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(thing, gathered)
        return gathered

    def broadcast(self, thing: Any) -> Any:
        """Rank 0's thing, on every rank."""
        if self.size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def world_size() -> int:
    """How many ranks the launcher started, before any process group exists; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_world(timeout_seconds: int = 600, group: bool = False) -> World:
    """Join the ranks that torchrun started (or be alone) and take a device: this rank's GPU, or the CPU.

    Collectives that hang for `timeout_seconds` end the process with an error. `group` makes a process group for one
    rank alone too, for libraries that cannot do without.
    """
    size, rank = world_size(), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        # more ranks than GPUs share them: slow, but it lets several ranks be tried on one GPU
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if (size > 1 or group) and not dist.is_initialized():
        timeout = timedelta(seconds=timeout_seconds)
        if size == 1:
            dist.init_process_group(_backend(device), timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(_backend(device), timeout=timeout)
    return World(rank, size, device)


def stop_world(world: World) -> None:
    """Leave together: a rank that tears its group down early can abort the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    if device.type == "cpu":
        return "gloo"
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count()
    return "gloo" if shared else "cpu:gloo,cuda:nccl"  # NCCL refuses two ranks on one GPU
