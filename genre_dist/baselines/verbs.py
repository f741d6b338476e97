"""The console verb baseline; it locks its folder before the heavy imports."""

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from genre_dist.baselines import BASELINES
from genre_dist.parallel.one_run import writing
from genre_dist.verb_options import Verbs, add_verb, names


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "baseline",
        _baseline,
        "classic models on the overviews: SVM and naive Bayes on words, tf-idf, vectors and n-grams",
        "Fit classic models on the texts of the train split and evaluate them on val and test as a neural "
        "run is. One --kind goes into RUN itself, several (all by default) into a folder each below RUN; what is there "
        "already is left alone.",
    )
    add = verb.add_argument
    add("shards", metavar="SHARDS")
    add("--out", metavar="RUN", type=Path, required=True, help="the run's folder, or the runs'")
    add("--kind", default="all", help=f"comma-separated: {', '.join(BASELINES)}; or all")
    add("--folders", action="store_true", help="a folder below RUN also for a single kind")
    add("--catalogue", type=Path, help="take the texts as written from the catalogue that was packed")
    add("--memory", type=float, default=4.0, help="GiB for SVMs: so many labels are fitted at once")
    add("--workers", type=int, help="labels fitted at the same time; all cores by default")


def _baseline(arguments: Namespace) -> None:
    kinds = tuple(BASELINES) if arguments.kind == "all" else names(arguments.kind)
    if unknown := [kind for kind in kinds if kind not in BASELINES]:
        raise ValueError(f"there is no baseline `{unknown[0]}`; there are {', '.join(BASELINES)}")
    folders = {kind: arguments.out / kind for kind in kinds}
    if len(kinds) == 1 and not arguments.folders:
        folders = {kinds[0]: arguments.out}
    with ExitStack() as stack:
        for folder in dict.fromkeys([arguments.out, *folders.values()]):
            stack.enter_context(writing(folder))
        from genre_dist.baselines.baseline import baselines

        baselines(arguments.shards, folders, arguments.catalogue, arguments.memory, arguments.workers)
