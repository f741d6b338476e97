"""The console verb doctor. It imports only what it needs."""

from argparse import Namespace
from pathlib import Path

from genre_dist.verb_options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add the verb to the console command."""
    verb = verbs.add_parser(
        "doctor",
        help="check this machine (under torchrun: all machines) for what training needs, and say how to mend it",
        description="Exit code 0: fit for training; 1: something is wrong, the table says what and how to mend it. "
        "On several ranks: torchrun --nproc_per_node=N -m genre_dist.cli doctor, with the options of your training.",
    )
    verb.add_argument("--shards", type=Path, default=Path("shards/default"), help="the shards to train on")
    verb.add_argument("--runs", type=Path, default=Path("runs"), help="where runs will be written")
    verb.add_argument("--json", action="store_true", help="print JSON instead of a table")
    verb.set_defaults(run=_doctor)


def _doctor(arguments: Namespace) -> int:
    from genre_dist.doctor.doctor import examine

    return examine(arguments.shards, arguments.runs, arguments.json)
