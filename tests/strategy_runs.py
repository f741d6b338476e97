"""Ranks that train with one strategy after another: started by `Processes.start_ranks` with a list of command lines.

One process for many runs: importing torch and DeepSpeed takes longer than training a tiny model.
"""

import json
import sys
from pathlib import Path

from genre_dist.configfile import parse_config
from genre_dist.parallel.world import start_world, stop_world
from genre_dist.train import _evaluate
from genre_dist.training.loop import run_training


def main() -> None:
    world = start_world(60, group=True)
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        assert run_training(parse_config(arguments).config, world, _evaluate) == 0
    stop_world(world)


if __name__ == "__main__":
    main()
