"""Ranks that train with one strategy after another: `python -m strategy_runs RUNS.json RANKS`.

One process for many runs, and ranks that are forked from it: importing torch and DeepSpeed takes longer than training a
tiny model.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: F401 (for all ranks)
import torch
from helpers import free_port

from genre_dist.config.files import parse_config
from genre_dist.parallel.world import start_world, stop_world
from genre_dist.training.trainer import Trainer


def main() -> None:
    runs, ranks = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    os.environ |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(ranks):
        if (child := os.fork()) == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            train(runs)
            return
        started.append(child)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
    sys.exit(f"the ranks ended with {ended}" if any(ended) else 0)


def train(runs: list[list[str]]) -> None:
    # it fills memory that nobody has written with NaN: a strategy that reads some is found, every time
    torch.use_deterministic_algorithms(True, warn_only=True)
    world = start_world(300, group=True)  # a busy machine may stand still for a minute
    for arguments in runs:
        assert Trainer(parse_config(arguments).config, world).fit() == 0
    stop_world(world)


if __name__ == "__main__":
    main()
