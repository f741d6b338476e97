"""Training whose micro-batches are the run's own to choose, and that runs out of memory where it is told to.

    python -m short_of_memory RANK STEP OPTIONS...

On that rank, the first and the third pass of that step (counted from 1) fail as CUDA fails: the whole micro-batch, then
the second of its halves, when a part of the step is done already.
"""

import sys
from typing import Any

import torch

from genre_dist.training import backoff, loop
from genre_dist.training import step as steps


def main() -> int:
    rank, wanted = int(sys.argv[1]), int(sys.argv[2])
    state = {"step": 0}
    plain_step, plain_loss = backoff.Backoff.step, steps.loss_sum

    def counted(self: Any, *arguments: Any) -> Any:
        state["step"] += 1
        state["passes"] = 0
        state["here"] = self.world.rank == rank
        return plain_step(self, *arguments)

    def failing(experiment_loss: Any) -> Any:
        def loss(*arguments: torch.Tensor) -> torch.Tensor:
            state["passes"] += 1
            if state["here"] and state["step"] == wanted and state["passes"] in (1, 3):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return experiment_loss(*arguments)

        return loss

    plain_set_up = loop.set_up

    def set_up(*arguments: Any) -> Any:
        experiment = plain_set_up(*arguments)
        return experiment._replace(loss=failing(experiment.loss or plain_loss))

    loop.may_split = lambda config, world: True  # as on a GPU
    loop.planned_config = lambda config, world: config
    loop.set_up = set_up  # type: ignore[assignment]
    backoff.Backoff.step = counted  # type: ignore[method-assign]
    from genre_dist.train import main as train

    return train(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
