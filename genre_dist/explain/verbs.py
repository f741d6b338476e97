"""The console verb explain; it locks its folder before the heavy imports."""

from argparse import Namespace
from pathlib import Path

from genre_dist.parallel.one_run import writing
from genre_dist.printable import printable
from genre_dist.verb_options import Verbs, add_run, add_split, add_verb, names


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "explain", _explain, "what on images and in texts speaks for a label, and what each is worth"
    )
    add_run(verb)
    add_split(verb, "test")
    add = verb.add_argument
    add("--out", type=Path, default=Path("explanation"), help="for index.html, PNGs and explanation.json")
    add("--films", default="", metavar="ID,ID", help="samples to explain; the surest ones by default")
    add("--count", type=int, default=8, help="how many samples, if none are named")
    add("--genres", type=int, default=2, help="labels explained for each sample")
    add("--shards", type=Path, help="other shards than the run was trained on")
    add("--no_ablation", action="store_true", help="leave out what each medium is worth")


def _explain(arguments: Namespace) -> None:
    with writing(arguments.out):
        from genre_dist.explain.explanation import explain

        explain(
            arguments.folder,
            arguments.out,
            split=arguments.split,
            ids=names(arguments.films),
            count=arguments.count,
            genres=arguments.genres,
            shards=arguments.shards,
            ablation=not arguments.no_ablation,
            trust_code=arguments.trust_code,
        )
    print(f"the explanation: {printable(arguments.out / 'index.html')}")
