"""The console verb `export`, which takes a model out of a run."""

from argparse import Namespace
from pathlib import Path

from genre_dist.lock import one_writer
from genre_dist.verb_options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add this package's verb to the console command."""
    verb = verbs.add_parser("export", help="take a model out of a run, finished or not, for predict and evaluate")
    verb.add_argument("folder", metavar="RUN", type=Path)
    verb.add_argument("--out", type=Path, required=True, help="a new folder")
    verb.add_argument(
        "--which",
        choices=["best", "last"],
        help="the checkpoint that was best by checkpoint.best_metric, or the newest (default: the finished model)",
    )
    verb.add_argument("--shards", type=Path, help="where the shards are, if not where the run's config.yaml says")
    verb.set_defaults(run=_export)


def _export(arguments: Namespace) -> None:
    with one_writer(arguments.out):
        from genre_dist.training.export import export_run

        step = export_run(arguments.folder, arguments.out, arguments.which, arguments.shards)
    print(f"{arguments.out}: the model of {arguments.folder} after step {step}")
