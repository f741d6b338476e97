"""Training whose micro-batches are the run's own to choose, and that runs out of memory where it is told to.

    python -m short_of_memory RANK STEP OPTIONS...

On that rank, the first and the third pass of that step (counted from 1) fail as CUDA fails: the whole micro-batch, then
the second of its halves, when a part of the step is done already. Ranks that torchrun has started again do not fail.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genre_dist.config import Config
from genre_dist.parallel.world import World
from genre_dist.training import backoff, trainer


def main() -> int:
    rank, wanted = int(sys.argv[1]), int(sys.argv[2])
    state = {"step": 0}
    first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    plain_step = backoff.Backoff.step

    def counted(self: Any, *arguments: Any) -> Any:
        state["step"] += 1
        state["passes"] = 0
        state["here"] = self.world.rank == rank
        return plain_step(self, *arguments)

    def failing(experiment_loss: Any) -> Any:
        def loss(*arguments: torch.Tensor) -> torch.Tensor:
            state["passes"] += 1
            if first_start and state["here"] and state["step"] == wanted and state["passes"] in (1, 3):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return experiment_loss(*arguments)

        return loss

    def planned(config: Config, world: World) -> Config:
        """What fitted an earlier start, which is all that a machine without a GPU can know."""
        note = Path(config.run.dir, backoff.NOTE)
        return (
            replace(config, data=replace(config.data, micro_batch=int(note.read_text()))) if note.is_file() else config
        )

    plain_set_up = trainer.set_up

    def set_up(*arguments: Any) -> Any:
        experiment = plain_set_up(*arguments)
        experiment.train_step.loss = failing(experiment.train_step.loss)
        return experiment

    trainer.may_split = lambda config, world: True  # as on a GPU
    trainer.planned_config = planned
    trainer.set_up = set_up  # type: ignore[assignment]
    backoff.Backoff.step = counted  # type: ignore[method-assign]
    from genre_dist.train import main as train

    return train(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
