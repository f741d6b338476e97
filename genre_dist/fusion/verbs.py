"""The console verb fuse; it locks its folder before the heavy imports."""

from argparse import Namespace
from pathlib import Path

from genre_dist.metrics.derived import refuse_other_folder
from genre_dist.parallel.one_run import writing
from genre_dist.verb_options import Verbs, add_verb


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "fuse",
        _fuse,
        "the predictions of several evaluated runs as those of one model: late fusion, or an ensemble of seeds",
        "Fuse the predictions of runs, baselines or evaluations with a hidden field on val and test into a folder that "
        "compare takes as it takes a run. A sample is predicted by the runs that have it.",
    )
    verb.add_argument("folders", metavar="RUN", type=Path, nargs="+")
    verb.add_argument("--out", type=Path, required=True, help="a new folder, or that of an earlier fusion")
    verb.add_argument(
        "--weights",
        choices=["fit", "equal"],
        default="fit",
        help="`fit`: of the least cross-entropy on val, for each set of runs that have a sample; `equal`: the mean of "
        "the logits, for seeds of one model",
    )


def _fuse(arguments: Namespace) -> None:
    refuse_other_folder(arguments.out)
    with writing(arguments.out):
        from genre_dist.fusion.fuse_runs import fuse_runs

        fuse_runs(arguments.folders, arguments.out, alike=arguments.weights == "equal")
    print(f"the fusion: {arguments.out}")
