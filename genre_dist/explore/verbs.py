"""The console verb explore; it locks its folder before the heavy imports."""

from argparse import Namespace
from pathlib import Path

from genre_dist.parallel.one_run import writing
from genre_dist.printable import printable
from genre_dist.verb_options import Verbs, add_verb


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "explore", _explore, "look at the samples of shards or a catalogue: numbers, figures, a page"
    )
    add = verb.add_argument
    add("source", metavar="SHARDS_OR_CATALOGUE", type=Path)
    add("--out", metavar="DIR", type=Path, required=True, help="for index.html, explore.json and PNGs")
    texts = ["overview", "title", "both"]
    add("--text", choices=texts, default="overview", help="a catalogue's text to look at")
    add("--poster_share", type=float, default=1.0, help="share of the images looked at, drawn by id")


def _explore(arguments: Namespace) -> None:
    with writing(arguments.out):
        from genre_dist.explore.exploring import explore

        counts = explore(arguments.source, arguments.out, arguments.text, arguments.poster_share)
    print(f"{printable(arguments.source)}: {counts.films.sum():,} {counts.declared.samples}")
    for what, films in counts.lacking.items():
        print(f"  {films:,} {what}")
    for fault in counts.faults:
        print(f"  {printable(fault)}")
    print(f"the page: {printable(arguments.out / 'index.html')}")
