"""Ranks whose GPUs are made up agree over a real store whether they can talk over NCCL. This file is their program.

Here NCCL has no GPU to work on: the ranks note the backend that they would take, and then talk over gloo.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import TORCHRUN, Processes, free_port

from genre_dist.parallel import gpu as devices
from genre_dist.parallel import world as worlds

NCCL = "cpu:gloo,cuda:nccl"


def ranks_of(folder: Path, gpus: str) -> tuple[list[int], str]:
    """Exit codes and output of two ranks with these GPUs, such as `a b`; `!` is one that cannot be used."""
    port = str(free_port())
    with Processes(folder) as ranks:
        for rank in range(2):
            place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks.fork(__name__, [], **place, GPUS=gpus)
        return ranks.wait(), ranks.output()


@pytest.mark.parametrize(("gpus", "backend", "sharing"), [("a b", NCCL, 1), ("a a", "gloo", 2)])
def test_both_ranks_take_nccl_where_each_has_a_gpu_and_gloo_where_they_share_one(
    gpus: str, backend: str, sharing: int, tmp_path: Path
) -> None:
    codes, said = ranks_of(tmp_path, gpus)
    assert not any(codes), said
    assert said.count(f"backend {backend}, {sharing} on its GPU, 2 met") == 2, said
    assert said.count("for trying out only") == (1 if backend == "gloo" else 0)  # by rank 0 alone


def test_a_gpu_that_cannot_be_used_ends_both_ranks_with_the_reason(tmp_path: Path) -> None:
    codes, said = ranks_of(tmp_path, "a !")
    assert all(codes), said
    assert "ValueError: rank 1 on" in said, said
    assert "has kernels for" in said
    assert "2 met" not in said


def test_a_restart_by_torchrun_compares_the_gpus_of_its_own_ranks_not_of_those_that_ended(tmp_path: Path) -> None:
    with Processes(tmp_path) as ranks:
        flags = ["--standalone", "--nproc_per_node=2", "--max_restarts=1"]
        ranks.start([TORCHRUN, *flags, __file__], GPUS="a a;b c")
        codes, said = ranks.wait(), ranks.output()
    assert not any(codes), said
    assert said.count("backend gloo, 2 on its GPU, 2 met") == 2, said
    assert said.count(f"backend {NCCL}, 1 on its GPU, 2 met") == 2, said


def main() -> None:
    """One rank. GPUS are those of the ranks, `a b`, or of the ranks of every attempt, `a a;b c`."""
    attempt, rank = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), int(os.environ["RANK"])
    attempts = os.environ["GPUS"].split(";")
    gpu = attempts[attempt].split()[rank]
    properties = SimpleNamespace(uuid=gpu, name="H100", pci_domain_id=0, pci_bus_id=ord(gpu), pci_device_id=0)
    answers = {"get_device_properties": properties, "get_device_name": "V100", "get_device_capability": (7, 0)}
    answers |= {"is_available": True, "device_count": 1, "set_device": None, "get_arch_list": ["sm_90"]}
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    worlds.choose_device = lambda: torch.device("cpu")
    worlds.take_device = lambda device: devices.take_device(torch.device("cuda", 0))

    def kernel(device: torch.device) -> None:
        if gpu == "!":
            raise torch.AcceleratorError("CUDA error: no kernel image is available")

    taken: list[str] = []
    join = dist.init_process_group

    def note(backend: str, **named: Any) -> None:
        taken.append(backend)
        join("gloo", **named)

    devices.run_kernel, dist.init_process_group = kernel, note
    world = worlds.start_world(timeout_seconds=40)
    met = int(world.sum(torch.ones(1)).item())
    print(f"backend {taken[0]}, {world.sharing} on its GPU, {met} met", flush=True)
    worlds.stop_world(world)
    if attempt + 1 < len(attempts):
        sys.exit("the next attempt has other GPUs")


if __name__ == "__main__":
    main()
