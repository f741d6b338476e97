"""The console verbs import and sample; each imports only what it needs."""

from argparse import Namespace
from pathlib import Path

from genre_dist.verb_options import Verbs, columns


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of the catalogue to the console command."""
    verb = verbs.add_parser("import", help="make a catalogue from a table and posters")
    verb.add_argument("--table", type=Path, required=True, help="Parquet, CSV or JSON lines, one film a row")
    verb.add_argument(
        "--posters", type=Path, nargs="*", default=[], help="folders (with all below them) or tars of posters"
    )
    verb.add_argument("--out", type=Path, required=True, help="the catalogue's folder")
    verb.add_argument(
        "--columns",
        nargs="*",
        default=[],
        metavar="OURS=THEIRS",
        help="columns by another name: tmdb_id=id overview=plot",
    )
    verb.add_argument("--poster_key", default="tmdb_id", help="the column that poster files are named by")
    verb.add_argument("--overwrite", action="store_true", help="replace a catalogue that is already there")
    verb.set_defaults(run=_import)

    verb = verbs.add_parser("sample", help="make a catalogue of procedural films: no network, no licence")
    verb.add_argument("--films", type=int, default=2000, help="how many")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--out", type=Path, required=True, help="the catalogue's folder")
    verb.set_defaults(run=_sample)


def _import(arguments: Namespace) -> None:
    from genre_dist.catalogue.importing import import_catalogue
    from genre_dist.printable import printable

    report = import_catalogue(
        arguments.table,
        arguments.posters,
        arguments.out,
        columns(arguments.columns),
        arguments.poster_key,
        arguments.overwrite,
    )
    having = report.having
    print(
        f"{arguments.out}: {report.rows:,} films, {having['poster']:,} with a poster, {having['overview']:,} with an "
        f"overview, {having['title']:,} with a title, {having['release_date']:,} with a release date"
    )
    for line in report.left_out.lines():
        print(f"  {line}")
    for genre, count in report.unknown_genres.most_common(10):
        print(f"  unknown genre `{printable(genre)}` dropped from {count:,} films")
    if len(report.unknown_genres) > 10:
        print(f"  and {len(report.unknown_genres) - 10:,} more unknown genres")
    print(f"next: genre-dist pack --catalogue {arguments.out} --out shards/default")


def _sample(arguments: Namespace) -> None:
    from genre_dist.catalogue.sample_films import make_sample

    make_sample(arguments.films, arguments.seed, arguments.out)
    print(f"{arguments.out}: {arguments.films:,} procedural films")
    print(f"next: genre-dist pack --catalogue {arguments.out} --out shards/default")
