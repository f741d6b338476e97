"""The console verb `plan`."""

import importlib
import sys
from argparse import REMAINDER, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre_dist.verb_options import Verbs, names

if TYPE_CHECKING:
    from genre_dist.config import Config
    from genre_dist.planner.options import MemoryPlan


def add_verbs(verbs: Verbs) -> None:
    """Add this package's verb to the console command."""
    verb = verbs.add_parser(
        "plan", help="what a configuration needs of a GPU, what makes it fit, the command, and how long a step takes"
    )
    verb.add_argument("--config", type=Path, help="YAML file; without it, the default experiment")
    verb.add_argument("--gpu_memory", metavar="SIZE", help="of one card, such as 24GB: what fits it")
    verb.add_argument(
        "--time", metavar="GPU", help="a card, such as H100: how long a step takes there at best, computed"
    )
    verb.add_argument("--gpus", type=int, default=1, help="how many cards")
    verb.add_argument("--global_batch", type=int, help="another global batch than the configuration's")
    verb.add_argument(
        "--micro_batch", type=int, help="with --time: samples of a pass; by default, what the memory allows"
    )
    verb.add_argument("--levers", type=names, help="what may be used: bf16,checkpointing,accumulation,sharding,offload")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the plan here as well")
    verb.add_argument("--measure", action="store_true", help="compare with the real peak, on a CUDA GPU")
    verb.add_argument("overrides", nargs=REMAINDER, metavar="-- KEY VALUE ...", help="settings, as training takes them")
    verb.set_defaults(run=_plan)


def _plan(arguments: Namespace) -> None:
    import json

    from genre_dist.atomic import atomic_file
    from genre_dist.planner.gpu_specs import card_named
    from genre_dist.planner.sizes import parse_size

    _check(arguments)
    card = None if arguments.time is None else card_named(arguments.time)
    memory = None if arguments.gpu_memory is None else parse_size(arguments.gpu_memory)
    config = _config(arguments)
    answers = {} if memory is None else _memory(arguments, config, memory)
    if card is not None:
        from genre_dist.planner.roofline import time_step
        from genre_dist.planner.timing_report import print_timing, timing_to_json

        memory = memory or int(card.memory_gib * 2**30)
        timing = time_step(config, card, arguments.gpus, arguments.micro_batch, memory)
        print_timing(timing)
        answers["time"] = timing_to_json(timing)
    if arguments.json:
        with atomic_file(arguments.json, "w") as out:
            json.dump(answers, out, indent=1)


def _check(arguments: Namespace) -> None:
    """Raise ValueError for options that are missing or do not go together."""
    if arguments.gpu_memory is None and arguments.time is None:
        raise ValueError(
            "--gpu_memory SIZE tells what fits a card, --time GPU how long a step takes: give one, or both"
        )
    if arguments.measure and arguments.gpu_memory is None:
        raise ValueError("--measure compares a plan with the real peak: give --gpu_memory SIZE too")
    if arguments.micro_batch is not None and arguments.time is None:
        raise ValueError("--micro_batch is for --time GPU; without it the plan finds the micro-batches itself")
    if arguments.gpus < 1:
        raise ValueError(f"--gpus is at least 1, not {arguments.gpus}")
    if arguments.config is not None and not arguments.config.is_file():
        raise ValueError(f"{arguments.config}: no such configuration file")


def _config(arguments: Namespace) -> "Config":
    from genre_dist.config.files import parse_config

    given = [] if arguments.config is None else ["--config", str(arguments.config)]
    given += arguments.overrides[arguments.overrides[:1] == ["--"] :]
    if arguments.global_batch is not None:
        given += ["--data.global_batch", str(arguments.global_batch)]
    return parse_config([*given, "--data.micro_batch", "auto"], prog="genre-dist plan").config


def _memory(arguments: Namespace, config: "Config", memory: int) -> dict[str, Any]:
    """Print the plan and compare it with the real peak if asked to; return the plan as JSON."""
    import torch

    from genre_dist.parallel.gpu import crowded
    from genre_dist.planner.options import LEVERS, make_plan
    from genre_dist.planner.plan_report import print_plan, to_json

    file = "" if arguments.config is None else str(arguments.config)
    plan = make_plan(config, memory, arguments.gpus, LEVERS if arguments.levers is None else arguments.levers)
    print_plan(plan, file)
    if torch.cuda.is_available() and (problem := crowded(torch.device("cuda", torch.cuda.current_device()))):
        print(f"this machine's {problem}; the plan above is for the memory you named")
    if arguments.measure:
        _measure(plan)
    return to_json(plan, file)


def _measure(plan: "MemoryPlan") -> None:
    """Compare a plan with the real peak by a benchmark: it needs training, which itself imports the planner."""
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_measure.py"
    if not script.is_file():
        raise ValueError(f"--measure needs {script}, which a checkout of the sources has: pip install -e")
    sys.path.append(str(script.parent))
    importlib.import_module(script.stem).print_measured(plan)
