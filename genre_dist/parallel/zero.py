"""DeepSpeed's engine: ZeRO-1, 2 and 3 shard the optimizer, then the gradients, then the weights over the ranks.

Checkpoints do not use DeepSpeed's own format, which is tied to one stage and one number of ranks: the fp32 weights and
moments are gathered tensor by tensor into the common format of all strategies.
"""

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.heads import Heads
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.tensors import all_finite, divide, send_from_first
from genre_dist.parallel.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class Zero(Strategy):
    """See `Strategy`. `settings` is DeepSpeed's configuration, from `engine_config`.

    DeepSpeed drives the given `optimizer` with its own flat tensors. Raises ValueError for settings that DeepSpeed
    refuses.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, world: World, settings: dict[str, Any]) -> None:
        deepspeed = _import_deepspeed(world)
        self.world, self.optimizer = world, optimizer
        if isinstance(model, GenreClassifier):
            model.text_beside = False  # DeepSpeed sums gradients on the stream of the loop
        self._sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        send_from_first(model, world)
        model = model.to(memory_format=torch.contiguous_format)  # DeepSpeed flattens weights in memory order
        if settings["zero_optimization"]["stage"] == 3:
            model.apply(_compute_separately)
        try:
            self._engine = deepspeed.initialize(
                args=_device_arguments(world.device),
                model=model,
                optimizer=optimizer,
                config=settings,
                dist_init_required=False,
            )[0]
        except (ValueError, KeyError) as error:
            raise ValueError(f"DeepSpeed refuses its settings: {' '.join(str(error).split())[:300]}") from None
        self.model = self._engine.module
        self._clip_norm = settings["gradient_clipping"]
        self._clear_padding()
        self._make_moments()

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def forward(self, *inputs: Any) -> Tensor:
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages over the ranks, but the loss is divided by its global count already and needs a sum
        self._engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def step(self, clip_norm: float | None) -> Tensor:
        assert (clip_norm or 0.0) == self._clip_norm, "DeepSpeed clips as it was configured"
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.world.device)

    def is_finite(self) -> bool:
        return all_finite((*self._flat_parameters(), *self.model.buffers()))

    def state_dict(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = max(float(self.optimizer.state[flat]["step"]) for flat in self._flat_parameters())
        parameters = dict(self.model.named_parameters())
        tensors = {name: 3 if parameter.requires_grad else 1 for name, parameter in parameters.items()}
        owners = divide({name: tensors[name] * size for name, size in self._sizes.items()}, self.world.size)
        model: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        for name, parameter in parameters.items():  # all ranks gather every tensor, and one keeps it
            mine = owners[name] == self.world.rank
            with self._gathered(parameter):
                if mine:
                    model[name] = parameter.detach().to("cpu", copy=True)
            if parameter.requires_grad:
                states = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
                if mine:
                    moments[name] = {key: value.to("cpu", copy=True) for key, value in states.items()}
                    moments[name]["step"] = torch.tensor(steps)
        if self.world.is_first:
            model |= {name: buffer.detach().to("cpu", copy=True) for name, buffer in self._buffers()}
        return {"model": model, "optimizer": moments}

    def blank_state(self) -> dict[str, Any]:
        model: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            model[name] = torch.zeros(shape)
            if parameter.requires_grad:
                moments[name] = {key: torch.zeros(shape) for key in MOMENTS} | {"step": torch.tensor(0.0)}
        model |= {name: torch.zeros_like(buffer, device="cpu") for name, buffer in self._buffers()}
        return {"model": model, "optimizer": moments}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        steps = {float(moments["step"]) for moments in state["optimizer"].values()}
        if len(steps) > 1:
            raise ValueError("its parameters took different numbers of steps, and DeepSpeed counts them together")
        for name, parameter in self.model.named_parameters():
            value = state["model"][name].to(self.world.device)
            with self._gathered(parameter, changed=True):
                parameter.copy_(value)
            if parameter.requires_grad:  # the optimizer has a copy of the rank's part
                self._set_part(parameter, value)
                for key in MOMENTS:
                    self._set_part(parameter, state["optimizer"][name][key].to(self.world.device), key)
        for name, buffer in self._buffers():
            buffer.copy_(state["model"][name])
        for flat in self._flat_parameters():
            self.optimizer.state[flat]["step"].fill_(steps.copy().pop())

    def weights(self) -> dict[str, Tensor]:
        weights = {}
        for name, parameter in self.model.named_parameters():
            with self._gathered(parameter):
                if self.world.is_first:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        return weights | {name: buffer.detach().cpu() for name, buffer in self._buffers()}

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """The buffers that are saved; others are made with the model, such as a transformer's positions."""
        saved = self.model.state_dict().keys()
        return [(name, buffer) for name, buffer in self.model.named_buffers() if name in saved]

    def _set_part(self, parameter: nn.Parameter, full: Tensor, key: str | None = None) -> None:
        """Set this rank's part of the optimizer's copy of a weight, or of its moment `key`."""
        from deepspeed import utils

        if not hasattr(parameter, "ds_id"):
            if key is None:
                utils.safe_set_full_fp32_param(parameter, full)
            else:
                utils.safe_set_full_optimizer_state(parameter, full, key)
            return
        own: Tensor = getattr(parameter, "ds_tensor")  # noqa: B009 (DeepSpeed adds it)
        size = own.numel()  # parts have equal size; the setters above forget the padding of the last ones
        padded = F.pad(full.flatten(), (0, size * self.world.size - full.numel()))
        part = padded.narrow(0, size * self.world.rank, size)
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)

    def _gathered(self, parameter: nn.Parameter, changed: bool = False) -> AbstractContextManager[Any]:
        """Inside, a sharded parameter is complete on all ranks; with `changed` rank 0's changes are kept."""
        if not hasattr(parameter, "ds_id"):
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters([parameter], modifier_rank=0 if changed else None)

    def _flat_parameters(self) -> list[Tensor]:
        """The optimizer's flattened parts of the trained parameters on this rank."""
        zero = self._engine.optimizer
        return getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups

    @torch.no_grad()
    def _clear_padding(self) -> None:
        """Zero the padding of the last ranks' parts: DeepSpeed leaves it uninitialised, with NaN at times.

        The values are harmless to DeepSpeed but not to `is_finite`.
        """
        from deepspeed import utils

        for name, parameter in self.model.named_parameters():
            if not hasattr(parameter, "ds_id") or not parameter.requires_grad:
                continue
            part = utils.safe_get_local_fp32_param(parameter)
            filled = self._sizes[name] - part.numel() * self.world.rank
            part[max(0, filled) :] = 0
            utils.safe_set_local_fp32_param(parameter, part)

    def _make_moments(self) -> None:
        """Give the optimizer its (zero) states before it first steps.

        DeepSpeed records their addresses once, after the first group's first step, when the other groups have none yet.
        """
        for flat in self._flat_parameters():
            zeros = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            self.optimizer.state[flat] = {"step": torch.zeros((), device=flat.device)} | zeros
        if hasattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()


def _device_arguments(device: torch.device) -> SimpleNamespace | None:
    """Arguments that make DeepSpeed take this GPU, not number LOCAL_RANK, which differs if ranks share a GPU or see one
    each (`_set_distributed_vars` in its runtime/engine.py)."""
    return SimpleNamespace(device_rank=device.index) if device.type == "cuda" else None


def _compute_separately(module: nn.Module) -> None:
    """Batched heads would keep views of weights that ZeRO-3 frees before the backward pass needs them."""
    if isinstance(module, Heads):
        module.kernel = "separate"


def _import_deepspeed(world: World) -> Any:
    """Import DeepSpeed for the world's device, quietly and without compiling anything."""
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # DeepSpeed would compile this extension for CPU ranks on one host for a minute at the first start
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
