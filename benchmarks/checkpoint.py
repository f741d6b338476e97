"""How long training stands still for a checkpoint, and what for.

    python benchmarks/checkpoint.py            ResNet152, 3-layer LSTM, 19 heads: 1.8 GB with AdamW's moments
    python benchmarks/checkpoint.py --quick    ResNet18 with a small LSTM and small heads

One rank, saved to the temporary folder's disk, as the loop saves: it looks for numbers that are not finite, builds the
state, copies it into buffers that are used again, and leaves the rest to a thread. Beside it the same copy alone, the
time the thread takes, and the same save without a thread. Between two saves the copy is written to its end, so that
saves never queue; all take turns, in this process with one thread, as ranks on a CPU have.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Row, measured, options, report
from torch import Tensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from genre_dist.config import CheckpointConfig, Config, HeadsConfig, ModelConfig, PosterConfig, TextConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.parallel.replicated import Replicated
from genre_dist.parallel.world import World
from genre_dist.training.checkpoint_manager import CheckpointManager
from genre_dist.training.optimizer import make_optimizer

GOAL_SECONDS = 1.0


class Clock:
    """Seconds by name; what it wraps is timed as it is called."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, act: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = act()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def watch(self, owner: Any, method: str, name: str) -> None:
        plain = getattr(owner, method)
        setattr(owner, method, lambda *arguments: self.time(name, lambda: plain(*arguments)))


def make_strategy(quick: bool, world: World) -> Replicated:
    """A model and an optimizer that has taken a step."""
    model_config = ModelConfig(
        text=TextConfig(hidden=128) if quick else TextConfig(),
        poster=PosterConfig(arch="resnet18" if quick else "resnet152", weights="none"),
        heads=HeadsConfig(hidden=(256, 128)) if quick else HeadsConfig(),
    )
    config = Config(model=model_config)
    model = GenreClassifier(config.model, 19, 224, 30_000, None, load_weights=False).to(world.device)
    strategy = Replicated(model, make_optimizer(model, config), world)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    strategy.step(None)
    return strategy


def main() -> None:
    arguments = options(__doc__ or "")
    rounds = 3 if arguments.quick else 6
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    strategy, clock = make_strategy(arguments.quick, world), Clock()
    tensors: list[Tensor] = list(flatten_state_dict(strategy.state_dict())[0].values())
    pinned = world.device.type == "cuda"
    room = [torch.empty_like(tensor, device="cpu", pin_memory=pinned) for tensor in tensors]

    def copy_alone() -> None:
        torch._foreach_copy_(room, tensors, non_blocking=pinned)
        if pinned:
            torch.cuda.synchronize()

    def save(saver: CheckpointManager, step: int) -> None:
        assert strategy.is_finite()
        saver.save(step)

    with tempfile.TemporaryDirectory() as folder:
        savers = {
            name: CheckpointManager(
                Path(folder, name), strategy, world, CheckpointConfig(asynchronous=name == "background", keep=1), {}
            )
            for name in ("background", "at once")
        }
        background = savers["background"]
        background.prepare()
        clock.time("making the room", background.wait)
        copy_alone()
        clock.watch(strategy, "is_finite", "looking for numbers that are not finite")
        clock.watch(strategy, "state_dict", "building the state")
        clock.watch(background._staging, "copy", "copying it")
        for step in range(1, rounds + 1):
            clock.time("the copy alone", copy_alone)
            clock.time("background", lambda step=step: save(background, step))  # type: ignore[misc]
            clock.time("written in the background", background.wait)
            clock.time("at once", lambda step=step: save(savers["at once"], step))  # type: ignore[misc]
        for saver in savers.values():
            saver.close()
    report(_rows(clock.seconds, sum(tensor.nbytes for tensor in tensors) / 1e9), arguments.json)


def _rows(seconds: dict[str, list[float]], gigabytes: float) -> list[Row]:
    what = f"{gigabytes:.2f} GB, 1 rank"
    stall = measured(f"{what}: training stands still", seconds["background"], "s")
    rows = [Row(**vars(stall) | {"goal": f"< {GOAL_SECONDS:.0f} s", "holds": stall.value < GOAL_SECONDS})]
    parts = ("looking for numbers that are not finite", "building the state", "copying it")
    rows += [measured(f"... of it {part}", seconds[part], "s") for part in parts]
    rows += [
        measured("the copy alone", seconds["the copy alone"], "s"),
        measured("training stands still over the copy alone", _ratios(seconds), "ratio"),
        measured("written beside the training in", seconds["written in the background"], "s"),
        measured("making the room for copies, beside the first steps", seconds["making the room"], "s"),
        measured(f"{what}: training stands still if it is written at once", seconds["at once"], "s"),
    ]
    return rows


def _ratios(seconds: dict[str, list[float]]) -> list[float]:
    return [whole / copy for whole, copy in zip(seconds["background"], seconds["the copy alone"], strict=True)]


if __name__ == "__main__":
    main()
