"""The console command `genre-dist`: one verb per stage, defined in `verbs.py` of its package."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from io import TextIOWrapper

from genre_dist import __version__
from genre_dist.baselines import verbs as baselines
from genre_dist.catalogue import verbs as catalogue
from genre_dist.compare import verbs as compare
from genre_dist.doctor import verbs as doctor
from genre_dist.explain import verbs as explain
from genre_dist.explore import verbs as explore
from genre_dist.export import verbs as export
from genre_dist.fusion import verbs as fusion
from genre_dist.inference import verbs as inference
from genre_dist.packing import verbs as packing
from genre_dist.planner import verbs as planner
from genre_dist.printable import printable
from genre_dist.study import verbs as study
from genre_dist.tars import verbs as tars
from genre_dist.tmdb import verbs as tmdb

PACKAGES = (
    catalogue, tmdb, packing, tars, planner, export, inference, fusion, compare, explore, baselines, explain, study,
    doctor
)  # fmt: skip
STOPPED = 130
"""Exit code after Ctrl-C, as in shells (128 + SIGINT)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. A user's mistake ends with one line on stderr and exit code 2, Ctrl-C with a line and STOPPED."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # titles on a terminal that cannot show them
    try:
        return arguments.run(arguments) or 0
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {printable(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="genre-dist",
        description="Multimodal classifiers of films' genres or of any data, from tables and images to models. "
        "Training itself: torchrun --nproc_per_node=N -m genre_dist.train",
    )
    parser.add_argument("--version", action="version", version=f"genre-dist {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for package in PACKAGES:
        package.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
