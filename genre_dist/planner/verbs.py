"""The console verb of the planner: plan. It imports only what it needs."""

from argparse import REMAINDER, Namespace
from pathlib import Path

from genre_dist.options import Verbs, names


def add_verbs(verbs: Verbs) -> None:
    """Add this room's verb to the console command."""
    verb = verbs.add_parser("plan", help="what a configuration needs of a GPU, what makes it fit, and the command")
    verb.add_argument("--config", type=Path, help="YAML file; without it, the default experiment")
    verb.add_argument("--gpu_memory", required=True, metavar="SIZE", help="of one card, such as 24GB")
    verb.add_argument("--gpus", type=int, default=1, help="how many cards")
    verb.add_argument("--global_batch", type=int, help="another global batch than the configuration's")
    verb.add_argument("--levers", type=names, help="what may be used: bf16,checkpointing,accumulation,sharding,offload")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the plan here as well")
    verb.add_argument("--measure", action="store_true", help="compare with the real peak, on a CUDA GPU")
    verb.add_argument("overrides", nargs=REMAINDER, metavar="-- KEY VALUE ...", help="settings, as training takes them")
    verb.set_defaults(run=_plan)


def _plan(arguments: Namespace) -> None:
    import json

    from genre_dist.atomic import atomic_file
    from genre_dist.configfile import parse_config
    from genre_dist.planner.options import LEVERS, make_plan
    from genre_dist.planner.report import print_plan, to_json
    from genre_dist.planner.sizes import parse_size

    card = parse_size(arguments.gpu_memory)
    if arguments.gpus < 1:
        raise ValueError(f"--gpus is at least 1, not {arguments.gpus}")
    if arguments.config is not None and not arguments.config.is_file():
        raise ValueError(f"{arguments.config}: no such configuration file")
    given = [] if arguments.config is None else ["--config", str(arguments.config)]
    given += arguments.overrides[arguments.overrides[:1] == ["--"] :]
    if arguments.global_batch is not None:
        given += ["--data.global_batch", str(arguments.global_batch)]
    config = parse_config([*given, "--data.micro_batch", "auto"], prog="genre-dist plan").config
    file = "" if arguments.config is None else str(arguments.config)
    plan = make_plan(config, card, arguments.gpus, LEVERS if arguments.levers is None else arguments.levers)
    print_plan(plan, file)
    if arguments.json:
        with atomic_file(arguments.json, "w") as out:
            json.dump(to_json(plan, file), out, indent=1)
    if arguments.measure:
        from genre_dist.planner.measure import print_measured

        print_measured(plan)
