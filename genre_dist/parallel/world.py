"""The ranks of a run: this process's rank and device, and collectives."""

import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from genre_dist.parallel.board import sign_in
from genre_dist.parallel.gpu import RankGpu, choose_device, exchange_gpus, is_shared, ranks_on, take_device
from genre_dist.parallel.launcher import own_rank, world_size
from genre_dist.parallel.watchdog import Watchdog

FOR_EVER = timedelta(days=365)
LONGEST_ALLOWED = 600.0
"""Longest extension in seconds (see `World.allow`) while others wait for a rank in a collective."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """One process among `size`. With size 1 every collective is the identity and no process group is needed."""

    rank: int
    size: int
    device: torch.device
    watchdog: Watchdog | None = None
    """Ends this rank if it waits too long for another one; every finished collective counts as progress."""
    sharing: int = 1
    """Ranks that share the memory of this rank's GPU, itself included."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place; it must be on the world's device."""
        if self.size > 1:
            dist.all_reduce(tensor)
            self.progress()
        return tensor

    def any(self, flag: bool) -> bool:
        """True on all ranks if it is true on one. The hosts exchange it, without a wait for a device."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags)
        self.progress()
        return bool(flags.item() > 0)

    def gather(self, thing: Any) -> list[Any] | None:
        """The objects of all ranks in rank order, on rank 0; None elsewhere."""
        if self.size == 1:
            return [thing]
        gathered: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(thing, gathered)
        self.progress()
        return gathered

    def broadcast(self, thing: Any) -> Any:
        """Rank 0's object, on every rank."""
        if self.size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box)
        self.progress()
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
            self.progress()

    def wait_for_all(self) -> None:
        """Wait for the others without a limit while one of them makes progress (see `progress`)."""
        self.any(False)

    def progress(self) -> None:
        """Report a finished unit of this rank's work (a batch, a shard), so that it does not count as hanging."""
        if self.watchdog is not None:
            self.watchdog.progress()

    def allow(self, seconds: float) -> None:
        """Extend the time before a rank counts as hanging once, for a long operation."""
        if self.watchdog is not None:
            self.watchdog.allow(seconds)


def on_first(world: World, act: Callable[[], Result]) -> Result | None:
    """The result of `act` on rank 0, which alone calls it; if it raises ValueError or OSError, all ranks do."""
    result: Result | None = None
    problem: tuple[type[ValueError | OSError], str] | None = None
    if world.is_first:
        try:
            result = act()
        except (OSError, ValueError) as error:
            problem = (OSError if isinstance(error, OSError) else ValueError), str(error)
    if problem := world.broadcast(problem):
        raise problem[0](problem[1])
    return result


@contextmanager
def all_ranks(timeout_seconds: int = 600, group: bool = False) -> Iterator[World]:
    """The context of a run's ranks: `start_world`, and `stop_world` at the end.

    A rank that ends by an error informs the others. A rank that cannot continue without it prints one line and raises
    SystemExit with an exit code: 2 after a user's mistake, 75 if the other was interrupted, else 1.
    """
    with _system_errors():
        world = start_world(timeout_seconds, group)
    try:
        with _system_errors():
            yield world
        stop_world(world)
    except BaseException as error:
        if world.watchdog is None:
            raise
        end = world.watchdog.part(error)
        world.watchdog.close()
        if end is None or end.rank == world.rank:
            raise
        print(f"error: {end}; this rank cannot go on without it", file=sys.stderr, flush=True)
        raise SystemExit(end.code) from None


@contextmanager
def _system_errors() -> Iterator[None]:
    """Limits of the system that gloo raises as RuntimeErrors become OSErrors, in one line."""
    try:
        yield
    except RuntimeError as error:
        if (reason := os.strerror(errno.EMFILE)) not in str(error):
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise OSError(errno.EMFILE, f"{reason}: `ulimit -n` allows {limit}, raise it (1024 is usual)") from None


def start_world(timeout_seconds: int = 600, group: bool = False) -> World:
    """Join the ranks that torchrun started, if any, and take a device: this rank's GPU, or the CPU.

    A rank that waits for the others for `timeout_seconds` while nobody makes progress prints its stacks and ends (see
    `Watchdog`). Raises OSError if the ranks do not find each other, ValueError if a rank's GPU cannot be used. `group`
    makes a process group for a single rank too, for libraries that need one.
    """
    size, rank = world_size(), own_rank()
    device = choose_device()
    gpu = take_device(device)
    if size == 1:
        if gpu.problem:
            raise ValueError(gpu.problem)  # several ranks raise it together, after the rendezvous
        if group and not dist.is_initialized():
            dist.init_process_group(_backend([gpu]), store=dist.HashStore(), rank=0, world_size=1)
        return World(rank, size, device)
    watchdog = Watchdog(rank, size, timeout_seconds)
    try:
        gpus, store = _meet(gpu, timeout_seconds + LONGEST_ALLOWED)
    except BaseException:
        watchdog.close()
        raise
    watchdog.join(store, None if _is_of_launcher() else 0)
    return World(rank, size, device, watchdog, ranks_on(gpu, gpus))


def _meet(gpu: RankGpu, timeout_seconds: float) -> tuple[list[RankGpu], dist.Store]:
    """Make the process group.

    Returns the ranks' GPUs, which determine its backend and so are exchanged first, and a second connection to the
    rendezvous store.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    timeout = timedelta(seconds=timeout_seconds)
    rank, size = own_rank(), world_size()
    try:
        if _restarts_share_a_store():
            server: dist.Store = dist.TCPStore(host, int(port), size, is_master=False, timeout=timeout)
            prefix = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
        else:  # as in init_process_group
            server, _, _ = next(dist.rendezvous("env://", timeout=timeout))
            server.set_timeout(timeout)
            prefix = "default_pg"
        store = dist.PrefixStore(prefix, server)
        gpus = exchange_gpus(store, gpu, rank, size)
        if rank == 0 and is_shared(gpus):
            print("several ranks are on one GPU: they talk over gloo, slowly; for trying out only", file=sys.stderr)
        if rank == 0:
            store.set("board", os.urandom(8).hex())  # a restart must not read messages of the previous attempt
        second = dist.TCPStore(host, int(port), is_master=False, timeout=timeout)
        board = dist.PrefixStore(f"board {store.get('board').decode()}", second)
        sign_in(board, rank)
        # the watchdog's timeout applies instead: it sees progress, and prints where the ranks wait
        dist.init_process_group(_backend(gpus), store=store, rank=rank, world_size=size, timeout=FOR_EVER)
        return gpus, board
    except dist.DistError as error:
        raise OSError(
            f"the ranks could not meet at {host}:{port}: {str(error).splitlines()[0]} (another program may have the "
            "port, a rank may not have started, or the node is not reached by that name: `genre-dist doctor` on each)"
        ) from None


def _is_of_launcher() -> bool:
    """Whether torchrun hosts the store, so that it outlives the ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _restarts_share_a_store() -> bool:
    """Whether the ranks of a restart would find the addresses of those that died: torchrun keeps its store.

    On several nodes launch/ forbids that (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1): the nodes count restarts differently.
    """
    return _is_of_launcher() and os.environ.get("GROUP_WORLD_SIZE", "1") == "1"


def stop_world(world: World) -> None:
    """Leave together: a rank that destroys its group early can abort the others."""
    world.barrier()
    if world.watchdog is not None:
        world.watchdog.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _backend(gpus: Sequence[RankGpu]) -> str:
    """The backend for ranks on these GPUs; a rank on the CPU needs to know none but its own."""
    if RankGpu() in gpus or is_shared(gpus):  # NCCL refuses two ranks on one GPU
        return "gloo"
    return "cpu:gloo,cuda:nccl"
