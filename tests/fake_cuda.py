"""GPUs that are not there: torch.cuda's answers, made up."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genre_dist.parallel import gpu as devices

GB = 2**30
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""What torch's CUDA 13 builds for x86 have kernels for."""


class FakeCuda:
    """GPUs, all alike, as torch.cuda would tell of them; what a test sets here is what the code under test sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.capability, self.uuid, self.bus = "NVIDIA H100 80GB HBM3", (9, 0), "ab-1", 0x1B
        self.count, self.free, self.total, self.reserved = 1, 79 * GB, 80 * GB, 0
        self.failure: Exception | None = None
        """What a kernel ends with on the GPUs that are `broken`."""
        self.broken = {0}
        self.current: torch.device | None = None
        answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "device_count": lambda: self.count,
            "current_device": lambda: 0,
            "set_device": lambda device: setattr(self, "current", device),
            "get_device_name": lambda device=None: self.name,
            "get_device_capability": lambda device=None: self.capability,
            "get_device_properties": lambda device=None: self.properties,
            "get_arch_list": lambda: CUDA_13,
            "mem_get_info": lambda device=None: (self.free, self.total),
            "memory_reserved": lambda device=None: self.reserved,
            "max_memory_allocated": lambda device=None: 5,
            "is_bf16_supported": lambda including_emulation=True: including_emulation or self.capability >= (8, 0),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(devices, "run_kernel", self.kernel)

    @property
    def properties(self) -> SimpleNamespace:
        address = {"pci_domain_id": 0, "pci_bus_id": self.bus, "pci_device_id": 0}
        major, minor = self.capability
        version = {"major": major, "minor": minor}
        return SimpleNamespace(name=self.name, uuid=self.uuid, total_memory=self.total, **version, **address)

    def kernel(self, device: torch.device) -> None:
        assert self.current == device, "a kernel on another GPU than the current one makes a context on both"
        if self.failure is not None and device.index in self.broken:
            raise self.failure


def no_kernels() -> Exception:
    return torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nSearch ...")
