"""The console verbs import and sample; each imports only what it needs."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre_dist.verb_options import Verbs, columns

if TYPE_CHECKING:
    from genre_dist.catalogue.sample_rows import Unlabelled
    from genre_dist.schema import Schema


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of the catalogue to the console command."""
    verb = verbs.add_parser(
        "import",
        help="make a catalogue from a table and images",
        description="Make a catalogue from a table and images. Without --id and --labels, or --schema: of films, with "
        "TMDB's ids and genres. With them: of anything.",
    )
    verb.add_argument("--table", type=Path, required=True, help="Parquet, CSV or JSON lines, one film or sample a row")
    verb.add_argument(
        "--posters",
        type=Path,
        nargs="*",
        default=[],
        help="folders (with all below them) or tars of images; with several image fields, FIELD=PATH",
    )
    verb.add_argument("--out", type=Path, required=True, help="the catalogue's folder")
    verb.add_argument(
        "--columns",
        nargs="*",
        default=[],
        metavar="NAME=COLUMN",
        help="of films, columns by another name: tmdb_id=id overview=plot",
    )
    verb.add_argument("--poster_key", help="the column that image files are named by; by default, that of the ids")
    verb.add_argument("--overwrite", action="store_true", help="replace a catalogue that is already there")
    add_declaring(verb.add_argument_group("a data set of your own"))
    verb.set_defaults(run=_import)

    verb = verbs.add_parser(
        "sample",
        help="make a catalogue of procedural films, or a table of other things: no network, no licence",
        description="Make a catalogue of procedural films; or a table with drawn images, to be imported as a data set "
        "of your own: products (photos, texts, numbers; one category each) or xrays (several a patient; any findings).",
    )
    verb.add_argument("--kind", choices=["films", "products", "xrays"], default="films")
    verb.add_argument("--films", "--samples", type=int, help="how many; by default 2000 films, 200 of other things")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--out", type=Path, required=True, help="the folder of the catalogue, or of table and images")
    verb.set_defaults(run=_sample)


def add_declaring(own: Any) -> None:
    """Add the options that declare a data set to a group of a parser."""
    own.add_argument("--id", metavar="COLUMN", help="ids, which may be any strings")
    own.add_argument("--labels", metavar="COLUMN", help="a label or several, as a list or separated by | ; or ,")
    own.add_argument(
        "--classes", metavar="auto|tmdb|FILE", help="all labels of the table (default), TMDB's genres, or one a line"
    )
    own.add_argument("--choose", choices=["many", "one"], help="labels a sample: any number (default), or exactly one")
    own.add_argument(
        "--unlabelled",
        choices=["leave_out", "keep", "refuse"],
        help="samples without a label: left out (default), kept as having none, or an error",
    )
    own.add_argument("--split_by", metavar="COLUMN", help="samples of one value lie in one split; by default the id")
    own.add_argument("--text", metavar="COLUMN", nargs="+", help="columns that are joined to one text")
    own.add_argument("--numbers", metavar="COLUMN", nargs="+", help="columns of numbers")
    own.add_argument("--schema", type=Path, metavar="FILE", help="YAML that declares all this, and several fields")


def _import(arguments: Namespace) -> None:
    from genre_dist.catalogue.import_options import declared_schema
    from genre_dist.catalogue.importing import import_catalogue
    from genre_dist.printable import printable

    if (schema := declared_schema(arguments)) is not None:
        _import_samples(arguments, schema)
        return
    report = import_catalogue(
        arguments.table,
        arguments.posters,
        arguments.out,
        columns(arguments.columns),
        arguments.poster_key or "tmdb_id",
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


def _import_samples(arguments: Namespace, schema: "Schema") -> None:
    from genre_dist.catalogue.import_options import declared_images
    from genre_dist.catalogue.importing_samples import import_samples, report_lines

    images = declared_images(arguments.posters, schema)
    unlabelled: Unlabelled = arguments.unlabelled or "leave_out"
    report = import_samples(arguments.table, schema, images, arguments.out, unlabelled, arguments.overwrite)
    print(f"{arguments.out}: {report.samples:,} samples")
    for line in report_lines(report):
        print(f"  {line}")
    print(f"next: genre-dist pack --catalogue {arguments.out} --out shards/default")


def _sample(arguments: Namespace) -> None:
    if arguments.kind != "films":
        _sample_table(arguments)
        return
    from genre_dist.catalogue.sample_films import make_sample

    films = 2000 if arguments.films is None else arguments.films
    make_sample(films, arguments.seed, arguments.out)
    print(f"{arguments.out}: {films:,} procedural films")
    print(f"next: genre-dist pack --catalogue {arguments.out} --out shards/default")


def _sample_table(arguments: Namespace) -> None:
    from genre_dist.catalogue.sample_tables import make_table, next_command

    rows = 200 if arguments.films is None else arguments.films
    make_table(arguments.kind, rows, arguments.seed, arguments.out)
    print(f"{arguments.out}: a table of {rows:,} {arguments.kind}, and their images")
    print(f"next: {next_command(arguments.kind, arguments.out)}")
