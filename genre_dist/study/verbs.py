"""The console verb study; it locks its folder before the heavy imports."""

from argparse import Namespace
from pathlib import Path

from genre_dist.lock import one_writer
from genre_dist.verb_options import Verbs, add_verb


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "study",
        _study,
        "the whole chain by one command: baselines, text, poster, frozen, end to end, and the comparison",
        "Run the stages of a study's YAML one after the other. Run again, it skips what is done and goes "
        "on with what is not. Exit code 75: stopped early, to be continued by the same command.",
    )
    verb.add_argument("--config", type=Path, required=True, help="such as configs/study.yaml")
    verb.add_argument("--out", type=Path, required=True, help="for a folder a stage and seed, and the report")
    changes = "change the study: seeds=[0] overrides.train.epochs=3"
    verb.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help=changes)


def _study(arguments: Namespace) -> int:
    with one_writer(arguments.out) as lock:
        from genre_dist.study.running import run_study

        return run_study(arguments.config, arguments.out, arguments.set, lock)
