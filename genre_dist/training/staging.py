"""A copy of the state in host memory, in buffers that are allocated once; with a GPU, pinned for full copy speed.

torch's stager allocates the buffers and caches them by storage. A strategy that gathers its state for every save (ZeRO)
has new storages each time, so this module caches the buffers by the tensors' names in the state.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor


class Staging:
    """Copies states whose tensors keep their names and shapes from one save to the next; others get new buffers."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pinned = device, device.type == "cuda"
        self._stager: DefaultStager | None = None
        self._layout: dict[str, tuple[Any, ...]] = {}
        self._buffers: list[Tensor] = []
        self._staged: dict[str, Any] = {}

    @torch.no_grad()
    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy of the state, complete when this returns; the next call overwrites it."""
        tensors = _tensors(state)
        layout = {name: (tensor.shape, tensor.stride(), tensor.dtype) for name, tensor in tensors.items()}
        if layout != self._layout:
            self.close()  # a stager of torch 2.11 stages one layout only
            self._stager = DefaultStager(StagingOptions(self._pinned, False, False, self._pinned))
            self._staged = cast(dict[str, Any], self._stager.stage(state))
            self._layout, self._buffers = layout, list(_tensors(self._staged).values())
        else:
            torch._foreach_copy_(self._buffers, list(tensors.values()), non_blocking=self._pinned)
            if self._pinned:
                torch.cuda.synchronize(self._device)
        return self._staged

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """This rank's tensors of a state by name; of a sharded tensor, its local shard."""
    flat = by_name(state).items()
    return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in flat}


def by_name(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The tensors of nested dictionaries under their keys joined by dots, the names they have in a checkpoint."""
    flat: dict[str, Any] = {}
    for key, value in state.items():
        flat |= by_name(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
