"""The ranks of a run: who this process is, on which device, and how ranks add up and gather."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from genre_dist.parallel.watchdog import Watchdog


@dataclass(frozen=True)
class World:
    """One process among `size`. With size 1 every collective is the identity and no process group is needed."""

    rank: int
    size: int
    device: torch.device
    watchdog: Watchdog | None = None
    """Ends this rank if it waits for another one for too long; told of every collective that finishes."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over all ranks, in place; it must lie on the world's device."""
        if self.size > 1:
            dist.all_reduce(tensor)
            self._progress()
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
        self._progress()
        return gathered

    def broadcast(self, thing: Any) -> Any:
        """Rank 0's thing, on every rank."""
        if self.size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box)
        self._progress()
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
            self._progress()

    def _progress(self) -> None:
        if self.watchdog is not None:
            self.watchdog.progress()


def world_size() -> int:
    """How many ranks the launcher started, before any process group exists; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_world(timeout_seconds: int = 600, group: bool = False) -> World:
    """Join the ranks that torchrun started (or be alone) and take a device: this rank's GPU, or the CPU.

    A rank that waits for the others for `timeout_seconds` prints its stacks and ends (see `Watchdog`). Raises OSError
    if the ranks do not find each other. `group` makes a process group for one rank alone too, for libraries that cannot
    do without.
    """
    size, rank = world_size(), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        # more ranks than GPUs share them: slow, but it lets several ranks be tried on one GPU
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size == 1:
        if group and not dist.is_initialized():
            dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1)
        return World(rank, size, device)
    watchdog = Watchdog(rank, size, timeout_seconds)
    if not dist.is_initialized():
        # torch's own timeout comes second: it knows only the collective, not the stacks
        _meet(_backend(device), timeout_seconds + 2 * watchdog.farewell)
    watchdog.progress()
    return World(rank, size, device, watchdog)


def _meet(backend: str, timeout_seconds: float) -> None:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    timeout = timedelta(seconds=timeout_seconds)
    rank, size = int(os.environ.get("RANK", "0")), world_size()
    try:
        if _restarts_share_a_store():
            server = dist.TCPStore(host, int(port), size, is_master=False, timeout=timeout)
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", server)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    except dist.DistError as error:
        raise OSError(
            f"the ranks could not meet at {host}:{port}: {str(error).splitlines()[0]} (another program may have the "
            "port, a rank may not have started, or the node is not reached by that name: `genre-dist doctor` on each)"
        ) from None


def _restarts_share_a_store() -> bool:
    """Whether the ranks of a restart would find the addresses of those that died: torchrun keeps its store.

    On several nodes it has to be told not to (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, see launch/): they count restarts
    differently.
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE", "1") == "1"


def stop_world(world: World) -> None:
    """Leave together: a rank that tears its group down early can abort the others."""
    if dist.is_initialized():
        world.barrier()
        dist.destroy_process_group()
    if world.watchdog is not None:
        world.watchdog.close()


def _backend(device: torch.device) -> str:
    if device.type == "cpu":
        return "gloo"
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count()
    return "gloo" if shared else "cpu:gloo,cuda:nccl"  # NCCL refuses two ranks on one GPU
