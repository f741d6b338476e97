"""The GPU of a rank: its choice, a check that it computes, other ranks on it, and its free memory."""

import json
import os
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from genre_dist.parallel.processes import BOOT_ID

CROWDED = 0.9
"""If less than this share of a GPU's memory is free, other processes hold more than a context and its libraries."""


class RankGpu(NamedTuple):
    """Identity of a rank's GPU for the other ranks. Empty for a rank on the CPU."""

    gpu: str = ""
    """Equal for ranks on one GPU, and on slices (MIG) of it."""
    memory: str = ""
    """Equal for ranks that share memory: slices of one GPU have separate memory."""
    problem: str = ""
    """The reason why the rank cannot compute there; empty if it can."""


def choose_device() -> torch.device:
    """This rank's GPU, or the CPU. More ranks than GPUs share them, which is slow but allows trials on one GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def take_device(device: torch.device) -> RankGpu:
    """Make a GPU the current one and check that it computes."""
    if device.type == "cpu":
        return RankGpu()
    if problem := gpu_problem(device):
        return RankGpu(problem=f"{socket.gethostname()}: {problem}")
    properties = torch.cuda.get_device_properties(device)
    # CUDA shows a process one slice at most, the first that CUDA_VISIBLE_DEVICES names
    slice_name = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] if is_slice(properties.name) else ""
    return RankGpu(_address(properties), f"{properties.uuid} {slice_name}")


def _address(properties: Any) -> str:
    """Machine and PCI address of a GPU; its UUID if torch has no address."""
    if not hasattr(properties, "pci_bus_id"):
        return str(properties.uuid)
    machine = BOOT_ID.read_text().strip() if BOOT_ID.is_file() else socket.gethostname()
    return f"{machine} {properties.pci_domain_id:x}:{properties.pci_bus_id:x}:{properties.pci_device_id:x}"


def is_slice(name: str) -> bool:
    """Whether a device is a slice of a GPU (MIG), by its name, such as `NVIDIA H100 80GB HBM3 MIG 3g.40gb`."""
    return " MIG " in name


def gpu_problem(device: torch.device) -> str:
    """The reason why a GPU cannot compute, else "". Makes it the current one and leaves a CUDA context on it."""
    try:
        torch.cuda.set_device(device)
        run_kernel(device)
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        return _explain(device, str(error).partition("\n")[0])
    return ""


def run_kernel(device: torch.device) -> None:
    """Run a small kernel of torch: only that shows whether torch has kernels for a GPU.

    The kernel is none of cuBLAS, whose settings have an effect only before its first use.
    """
    torch.ones(2, device=device).sum().item()


def _explain(device: torch.device, said: str) -> str:
    """A line on the cause of a GPU's failed kernel, and the remedy."""
    try:
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    except (RuntimeError, torch.cuda.DeferredCudaCallError):
        return f"{device} cannot be used ({said}): `nvidia-smi` must work there first"
    built = [kind for kind in torch.cuda.get_arch_list() if kind.startswith(("sm_", "compute_"))]
    if not built or has_kernels(built, capability):
        return (
            f"{device} ({name}) cannot be used ({said}): `nvidia-smi` tells whether it is well, in use or full; "
            "CUDA_VISIBLE_DEVICES chooses another one"
        )
    newer = all(_version(kind)[0] < capability[0] for kind in built)
    other = "a newer torch" if newer else "torch built for an older CUDA"
    return (
        f"{device} ({name}) is an sm_{capability[0]}{capability[1]}, and torch {torch.__version__} has kernels for "
        f"{', '.join(built)} only: install {other} (pytorch.org, Get started), or hide it with CUDA_VISIBLE_DEVICES"
    )


def has_kernels(built: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a torch built for these architectures runs on a GPU of a compute capability (major, minor).

    Machine code (sm_90) runs from its own minor version on within the major one; PTX (compute_90) on all that is newer;
    with the suffix `a` both run on that very version only, with `f` within the family, taken as the major version. From
    the CUDA Programming Guide, Compute Capabilities.
    """
    for kind in built:
        version, exact = _version(kind), kind.endswith("a")
        forward = kind.startswith("compute_") and kind[-1].isdecimal()  # PTX without a suffix
        same_major = version[0] == capability[0]
        if version == capability or (version < capability and not exact and (forward or same_major)):
            return True
    return False


def _version(kind: str) -> tuple[int, int]:
    """(9, 0) of sm_90, sm_90a or compute_90."""
    number = int(kind.partition("_")[2].rstrip("af"))
    return number // 10, number % 10


def exchange_gpus(store: dist.Store, own: RankGpu, rank: int, size: int) -> list[RankGpu]:
    """Exchange the GPUs of all ranks, before the process group exists.

    A rank on the CPU needs none but its own. Raises ValueError on all ranks with a GPU if a rank's GPU is unusable, or
    if a rank has none.
    """
    store.set(f"gpu {rank}", json.dumps(own))
    if own == RankGpu():
        return [own]
    gpus = [RankGpu(*json.loads(text)) for text in store.multi_get([f"gpu {each}" for each in range(size)])]
    for each, other in enumerate(gpus):
        if other.problem:
            raise ValueError(f"rank {each} on {other.problem}")
    if RankGpu() in gpus:
        raise ValueError(
            f"rank {gpus.index(RankGpu())} of {size} has no GPU that torch can use, and others have one: `genre-dist "
            "doctor` on its machine says why; to train on CPUs, CUDA_VISIBLE_DEVICES= on all"
        )
    return gpus


def is_shared(gpus: Sequence[RankGpu]) -> bool:
    """Whether two ranks are on one GPU, or on slices of one, which NCCL refuses.

    NCCL compares machine and PCI address (`Duplicate GPU detected`), from 2.30 on the UUID; slices have the address of
    their GPU.
    """
    addresses, memories = Counter(each.gpu for each in gpus), Counter(each.memory for each in gpus)
    return max([*addresses.values(), *memories.values()]) > 1


def ranks_on(own: RankGpu, gpus: Sequence[RankGpu]) -> int:
    """How many ranks share this rank's memory, itself included."""
    return sum(other.memory == own.memory for other in gpus)


def free_memory(device: torch.device, ranks_here: int = 1) -> int:
    """Bytes available to this rank: its share of its GPU's free memory, and the memory that its allocator holds.

    The CUDA context exists by now, so the free memory does not include it.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return free // ranks_here + torch.cuda.memory_reserved(device)


def crowded(device: torch.device) -> str | None:
    """A line if other processes hold much of a GPU's memory; None if they do not."""
    free, total = free_memory(device), torch.cuda.mem_get_info(device)[1]
    if free >= CROWDED * total:
        return None
    return (
        f"{device} ({torch.cuda.get_device_name(device)}): {free / 2**30:.1f} GB of {total / 2**30:.1f} GB are free, "
        "other processes hold the rest (`nvidia-smi` lists them)"
    )
