"""The console verb compare; it locks its folder before the heavy imports."""

from argparse import Namespace
from pathlib import Path

from genre_dist.parallel.one_run import writing
from genre_dist.printable import printable
from genre_dist.verb_options import Verbs, add_split, add_verb


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(verbs, "compare", _compare, "put runs side by side, with intervals for all differences; a report")
    runs = "NAME-seed0 NAME-seed1 ... count as one model"
    verb.add_argument("folders", metavar="RUN", type=Path, nargs="+", help=runs)
    add_split(verb, "test")
    verb.add_argument("--out", type=Path, default=Path("report"), help="for index.html, comparison.md, .json and .csv")
    verb.add_argument("--shards", help="where titles and images are, if not where the runs had them")
    verb.add_argument("--resamples", type=int, default=10_000, help="of the samples, for the intervals")
    verb.add_argument("--films", type=int, default=6, help="largest wins and losses to show")


def _compare(arguments: Namespace) -> None:
    if arguments.resamples < 1 or arguments.films < 0:
        raise ValueError(f"--resamples is at least 1 and --films 0, not {arguments.resamples} and {arguments.films}")
    with writing(arguments.out):
        from genre_dist.compare.comparison import compare

        options = arguments.split, arguments.resamples, arguments.films, arguments.shards
        compare(arguments.folders, arguments.out, *options)
    print(f"the report: {printable(arguments.out / 'index.html')}")
