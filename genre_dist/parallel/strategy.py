"""What the training loop asks of a strategy, and the choice between them."""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from genre_dist.config import Config, derive_batches
from genre_dist.parallel.deepspeed_config import engine_config, read_overrides
from genre_dist.parallel.tensors import all_finite
from genre_dist.parallel.world import World


class Strategy:
    """One way to train a model on all ranks; the loop never asks which. The methods here are torch's own way.

    Every rank calls every method, and `model`, the same number of times in the same order.
    """

    model: nn.Module
    """The plain model: its names, and what to call for predictions. Its parameters may be parts only."""
    optimizer: Optimizer
    """Its groups' learning rates are those of the next step."""
    world: World

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Surrounds forward and backward of a micro-batch; gradients are complete after the last one of a step."""
        return nullcontext()

    def forward(self, *inputs: Any) -> Tensor:
        """The model's output. Tensors among the inputs lie on the world's device; what else there is stays as it is."""
        return self.model(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that is this rank's part of a sum over all ranks."""
        (loss * self.world.size).backward()  # DDP and FSDP average over the ranks

    def step(self, clip_norm: float | None) -> Tensor:
        """Clip, update the weights, forget the gradients; returns the whole gradient's norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self._trained, clip_norm if clip_norm is not None else float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def trained_changed(self) -> None:
        """Called after gradients of parameters were turned on or off; the optimizer knows all that ever train."""
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def sync_buffers(self) -> None:
        """Make BatchNorm's running statistics the mean of all ranks', before evaluating or saving."""
        if self.world.size > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.world.size

    def is_finite(self) -> bool:
        """Whether no weight or buffer that this rank holds is infinite or NaN."""
        return all_finite(self.model.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        """This rank's share of what a checkpoint holds; together the shares are the whole.

        {"model": {name: tensor}, "optimizer": {name of a trained parameter: {"exp_avg": tensor, ...}}}, fp32 and keyed
        by parameter names whatever the strategy.
        """
        return self.blank_state()

    def blank_state(self) -> dict[str, Any]:
        """Tensors, structured like `state_dict`, for torch.distributed.checkpoint to read a whole checkpoint into."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was read into `blank_state()`."""
        groups = get_state_dict(self.model, self.optimizer)[1]["param_groups"]
        optimizer = {"state": state["optimizer"], "param_groups": groups}
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=optimizer)

    def weights(self) -> dict[str, Tensor]:
        """All weights and buffers, whole and on the host, on rank 0; what other ranks get is of no use."""
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}


def strategy_name(config: Config, world_size: int) -> str:
    """The strategy that runs, `auto` resolved."""
    if config.parallel.strategy == "auto":
        return "single" if world_size == 1 else "ddp"
    return config.parallel.strategy


def check_strategy(config: Config, world_size: int) -> None:
    """Raise ValueError if the strategy cannot run on this many ranks, here, or with these settings."""
    parallel, name = config.parallel, strategy_name(config, world_size)
    if name == "single" and world_size > 1:
        raise ValueError(
            f"parallel.strategy=single with {world_size} ranks: each would train alone; use ddp (or auto), or one rank"
        )
    if name.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"parallel.strategy={name} needs DeepSpeed, which is not installed: pip install 'genre_dist[deepspeed]', "
            "or use fsdp, which spreads the same over the ranks without it"
        )
    if not name.startswith("zero") and (parallel.offload_optimizer or parallel.deepspeed_config):
        setting = "offload_optimizer" if parallel.offload_optimizer else "deepspeed_config"
        raise ValueError(
            f"parallel.{setting} is DeepSpeed's: it needs parallel.strategy zero1, zero2 or zero3, not {name}"
        )
    read_overrides(config)
    if name not in ("single", "ddp") and config.optim.optimizer != "adamw":
        raise ValueError(
            f"optim.optimizer={config.optim.optimizer} needs whole parameters, which {name} cuts up: use ddp, or "
            f"adamw, whose states {name} spreads over the ranks"
        )
    if name == "zero3" and config.train.compile is True:
        raise ValueError(
            "train.compile=true with zero3: its weights come and go inside the compiled blocks; use fsdp, or auto"
        )
    if name == "zero3" and config.model.heads.kernel == "batched":
        raise ValueError(
            "model.heads.kernel=batched with zero3: it gives weights up that stacked ones still need; leave it at auto"
        )
    if name not in ("single", "ddp") and config.model.unfreezes:
        raise ValueError(
            f"model.*.unfreeze_at with {name}: what is trained is laid out over the ranks once, at the start; use ddp, "
            "or two runs, the second from the first one's weights"
        )
    if name == "zero3" and config.train.ema_decay is not None:
        raise ValueError(
            "train.ema_decay with zero3: DeepSpeed keeps the weights where they cannot be averaged; use zero2 or fsdp"
        )
    if name.startswith("zero") and parallel.compress_gradients:
        raise ValueError(
            f"parallel.compress_gradients is for ddp and fsdp; with {name} set communication_data_type in the JSON of "
            "parallel.deepspeed_config"
        )


def make_strategy(
    config: Config,
    model: nn.Module,
    make_optimizer: Callable[[nn.Module], Optimizer],
    world: World,
    precision: str,
    splits: bool = False,
) -> Strategy:
    """The strategy the configuration names, around a model on the world's device.

    `splits`: micro-batches may be cut smaller on the way.

    Raises ValueError as `check_strategy` does, and for what is wrong in `parallel.deepspeed_config`.
    """
    check_strategy(config, world.size)
    parallel, name = config.parallel, strategy_name(config, world.size)
    batches = derive_batches(config.data, world.size)
    compress = parallel.compress_gradients
    if name == "fsdp":
        from genre_dist.parallel.sharded import Sharded

        return Sharded(model, make_optimizer, world, compress)
    if name.startswith("zero"):
        from genre_dist.parallel.zero import Zero

        settings = engine_config(config, batches, precision, pin_memory=world.device.type == "cuda")
        return Zero(model, make_optimizer(model), world, settings)
    from genre_dist.parallel.replicated import Replicated

    static = batches.accumulation == 1 and not splits  # without accumulation all steps have the same graph
    return Replicated(model, make_optimizer(model), world, compress, static)
