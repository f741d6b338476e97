"""The choice of a strategy: its name, its checks and its construction."""

import importlib.util
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from genre_dist.config import Config, derive_batches
from genre_dist.parallel.deepspeed_config import engine_config, read_overrides
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.world import World


def strategy_name(config: Config, world_size: int) -> str:
    """The configured strategy, with `auto` resolved."""
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
    """The configured strategy around a model on the world's device. With `splits` the loop may split micro-batches.

    Raises ValueError as `check_strategy` does, and for errors in `parallel.deepspeed_config`.
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
