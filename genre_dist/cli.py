"""The console command `genre-dist`: one verb a stage. The verbs lie in the rooms they belong to, in `verbs.py`."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from io import TextIOWrapper

from genre_dist import __version__
from genre_dist.acquire import verbs as acquire
from genre_dist.cluster import verbs as cluster
from genre_dist.planner import verbs as planner
from genre_dist.prepare import verbs as prepare
from genre_dist.printable import printable
from genre_dist.stream import verbs as stream
from genre_dist.study import verbs as study
from genre_dist.training import verbs as training

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. User mistakes end with one line on stderr and exit code 2, Ctrl-C with one and STOPPED."""
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
        description="Film genres from posters and overviews: from raw films to a trained, evaluated model. "
        "Training itself: torchrun --nproc_per_node=N -m genre_dist.train",
    )
    parser.add_argument("--version", action="version", version=f"genre-dist {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for room in (acquire, prepare, stream, planner, training, study, cluster):
        room.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
