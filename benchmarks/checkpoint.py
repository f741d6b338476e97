"""How long training stands still for a checkpoint: written at once, or copied and written in the background.

The model is the real one (ResNet152, 3-layer LSTM, 19 heads) with AdamW's moments, on one rank, saved to the temporary
folder's disk. `--quick` takes ResNet18. Between two saves the copy is written to its end, so that saves never queue.
"""

import tempfile
import time
from pathlib import Path

import torch
from common import Row, measured, options, report

from genre_dist.config import CheckpointConfig, Config, ModelConfig, PosterConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.parallel.replicated import Replicated
from genre_dist.parallel.world import World
from genre_dist.training.experiment import make_optimizer
from genre_dist.training.saving import Saver

GOAL_SECONDS = 1.0
ROUNDS = 6


def main() -> None:
    arguments = options(__doc__ or "")
    arch = "resnet18" if arguments.quick else "resnet152"
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    config = Config(model=ModelConfig(poster=PosterConfig(arch=arch, weights="none")))
    model = GenreClassifier(config.model, 19, 224, 30_000, None, load_weights=False).to(world.device)
    strategy = Replicated(model, make_optimizer(model, config), world)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    strategy.step(None)  # so that there are moments
    state = strategy.state_dict()
    tensors = [*state["model"].values(), *(t for moments in state["optimizer"].values() for t in moments.values())]
    gigabytes = sum(tensor.nbytes for tensor in tensors) / 1e9
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        savers = {
            asynchronous: Saver(
                Path(folder) / str(asynchronous),
                strategy,
                world,
                CheckpointConfig(asynchronous=asynchronous, keep=1),
                {},
            )
            for asynchronous in (False, True)
        }
        for step in range(1, ROUNDS + 1):
            for asynchronous, saver in savers.items():
                began = time.monotonic()
                saver.save(step)
                seconds[asynchronous].append(time.monotonic() - began)
                saver.wait()
        for saver in savers.values():
            saver.close()
    what = f"{arch} + LSTM + heads, {gigabytes:.2f} GB, 1 rank"
    stall = measured(f"{what}: training stands still, in the background", seconds[True], "s")
    report(
        [
            measured(f"{what}: training stands still, written at once", seconds[False], "s"),
            Row(**{**vars(stall), "goal": f"< {GOAL_SECONDS:.0f} s", "holds": stall.value < GOAL_SECONDS}),
        ],
        arguments.json,
    )


if __name__ == "__main__":
    main()
