"""Console verbs that study runs: evaluate, predict, compare. Each imports only what it needs."""

from argparse import Namespace
from pathlib import Path

from genre_dist.options import Verbs, names
from genre_dist.study.baselines import BASELINES


def add_verbs(verbs: Verbs) -> None:
    """Add this room's verbs to the console command."""
    verb = verbs.add_parser("evaluate", help="evaluate a run on a split (under torchrun: on several ranks)")
    verb.add_argument("folder", metavar="RUN", type=Path)
    verb.add_argument("--split", choices=["train", "val", "test"], default="val")
    verb.add_argument("--shards", type=Path, help="other shards than the run was trained on")
    verb.set_defaults(run=_evaluate)

    verb = verbs.add_parser("predict", help="rank the genres of one film")
    verb.add_argument("folder", metavar="RUN", type=Path)
    verb.add_argument("--poster", type=Path, help="an image file")
    verb.add_argument("--overview", help="the film's overview")
    verb.set_defaults(run=_predict)

    verb = verbs.add_parser("compare", help="put runs side by side, with intervals for all differences; a report")
    verb.add_argument(
        "folders", metavar="RUN", type=Path, nargs="+", help="NAME-seed0 NAME-seed1 ... count as one model"
    )
    verb.add_argument("--split", choices=["train", "val", "test"], default="test")
    verb.add_argument("--out", type=Path, default=Path("report"), help="for index.html, comparison.md, comparison.json")
    verb.add_argument("--shards", type=Path, help="where titles and posters are, if not where the runs had them")
    verb.add_argument("--resamples", type=int, default=2000, help="of the films, for the intervals")
    verb.add_argument("--films", type=int, default=6, help="largest wins and losses to show")
    verb.set_defaults(run=_compare)

    verb = verbs.add_parser(
        "baseline",
        help="classic models on the overviews: SVM and naive Bayes on words, tf-idf, vectors and n-grams",
        description="Fit classic models on the texts of the train split and evaluate them on val and test as a neural "
        "run is. One --kind goes into RUN itself, several (all by default) into a folder each below RUN; what is there "
        "already is left alone.",
    )
    verb.add_argument("shards", metavar="SHARDS", type=Path)
    verb.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run's folder, or the runs'")
    verb.add_argument("--kind", default="all", help=f"comma-separated: {', '.join(BASELINES)}; or all")
    verb.add_argument("--catalogue", type=Path, help="take the texts as written from the catalogue that was packed")
    verb.add_argument(
        "--memory", type=float, default=4.0, help="GiB for features held; beyond it, SVMs learn from chunks by SGD"
    )
    verb.add_argument("--workers", type=int, help="genres fitted at the same time; all cores by default")
    verb.set_defaults(run=_baseline)


def _evaluate(arguments: Namespace) -> None:
    from genre_dist.study.evaluation import evaluate_run

    evaluate_run(arguments.folder, arguments.split, arguments.shards)


def _predict(arguments: Namespace) -> None:
    import torch

    from genre_dist.study.prediction import predict
    from genre_dist.study.run import load_run

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(arguments.folder, device)
    for genre, probability in predict(run, arguments.poster, arguments.overview, device):
        print(f"{probability:7.2%}  {genre}")


def _compare(arguments: Namespace) -> None:
    from genre_dist.study.comparison import CompareOptions, compare

    compare(
        arguments.folders,
        arguments.out,
        CompareOptions(
            split=arguments.split,
            resamples=arguments.resamples,
            shards=arguments.shards,
            films=arguments.films,
        ),
    )
    print(f"the report: {arguments.out / 'index.html'}")


def _baseline(arguments: Namespace) -> None:
    from genre_dist.study.baselines.baseline import baselines

    kinds = tuple(BASELINES) if arguments.kind == "all" else names(arguments.kind)
    if unknown := [kind for kind in kinds if kind not in BASELINES]:
        raise ValueError(f"there is no baseline `{unknown[0]}`; there are {', '.join(BASELINES)}")
    baselines(arguments.shards, arguments.out, kinds, arguments.catalogue, arguments.memory, arguments.workers)
