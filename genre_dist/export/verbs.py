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
    verb.add_argument("--license", metavar="NAME", help="the model's license, for its card (README.md)")
    verb.set_defaults(run=_export)


def _export(arguments: Namespace) -> None:
    licence = arguments.license
    if licence is not None and not (licence.strip() and licence.isprintable()):
        raise ValueError("--license takes a name in one line, such as cc-by-4.0")
    with one_writer(arguments.out):
        from genre_dist.export.exporting import export_run

        step = export_run(arguments.folder, arguments.out, arguments.which, arguments.shards, licence)
    print(f"{arguments.out}: the model of {arguments.folder} after step {step}")
