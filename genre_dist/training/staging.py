"""A state's copy in host memory, in buffers that are made once: pinned beside a GPU, so that copies run at full speed.

torch's stager makes the buffers and knows them by the storages they were made for. A strategy that gathers its state
anew for every save (ZeRO) shows new storages each time, so here they are known by their names in the state.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor


class Staging:
    """Copies states whose tensors keep their names and shapes from one save to the next; others get new buffers."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pinned = device, device.type == "cuda"
        self._stager = DefaultStager(StagingOptions(self._pinned, False, False, self._pinned))
        self._layout: dict[str, tuple[Any, ...]] = {}
        self._buffers: list[Tensor] = []
        self._staged: dict[str, Any] = {}

    @torch.no_grad()
    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state's copy, complete when this returns; the next call writes over it."""
        tensors = _tensors(state)
        layout = {name: (tensor.shape, tensor.stride(), tensor.dtype) for name, tensor in tensors.items()}
        if layout != self._layout:
            self._staged = cast(dict[str, Any], self._stager.stage(state))
            self._layout, self._buffers = layout, list(_tensors(self._staged).values())
        else:
            torch._foreach_copy_(self._buffers, list(tensors.values()), non_blocking=self._pinned)
            if self._pinned:
                torch.cuda.synchronize(self._device)
        return self._staged

    def close(self) -> None:
        self._stager.close()


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """What this rank holds of a state: name -> tensor, of spread ones its part."""
    flat = flatten_state_dict(state)[0]
    return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in flat.items()}
