"""Console verbs that acquire films: import, fetch, sample. Each imports only what it needs."""

from argparse import Namespace
from pathlib import Path

from genre_dist.options import Verbs, columns, names


def add_verbs(verbs: Verbs) -> None:
    """Add this room's verbs to the console command."""
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

    verb = verbs.add_parser("fetch", help="fetch films and posters from TMDB; run again to go on or to add")
    verb.add_argument("--out", type=Path, required=True, help="the catalogue's folder")
    verb.add_argument("--key_file", type=Path, help="holds the API key or bearer token; else TMDB_API_KEY does")
    verb.add_argument("--years", help="release years such as 1980,1990-1999; all by default")
    verb.add_argument("--languages", default="", help="original languages such as en,fr; all by default")
    verb.add_argument("--min_votes", type=int, default=0)
    verb.add_argument("--with_poster_only", action="store_true", help="leave out films without a poster")
    verb.add_argument("--with_undated", action="store_true", help="films without a date too, from the daily id export")
    verb.add_argument("--limit", type=int, help="stop when the catalogue has so many films")
    verb.add_argument("--size", default="w342", help="TMDB's name of a poster size; none leaves posters out")
    verb.add_argument("--rate", type=int, default=40, help="requests a second, all together; 0 for no limit")
    verb.add_argument("--concurrency", type=int, default=16, help="requests at a time")
    verb.add_argument("--retry_failed", action="store_true", help="try posters again that failed before")
    verb.add_argument("--refresh", action="store_true", help="bring films up to date; posters only where they changed")
    verb.add_argument("--api_url", default="https://api.themoviedb.org/3", help="TMDB's API, or a mirror of it")
    verb.add_argument("--image_url", default="https://image.tmdb.org/t/p", help="TMDB's posters, or a mirror of them")
    verb.add_argument("--export_url", default="http://files.tmdb.org/p/exports", help="the daily id exports")
    verb.set_defaults(run=_fetch)

    verb = verbs.add_parser("sample", help="make a catalogue of procedural films: no network, no licence")
    verb.add_argument("--films", type=int, default=2000, help="how many")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--out", type=Path, required=True, help="the catalogue's folder")
    verb.set_defaults(run=_sample)


def _import(arguments: Namespace) -> None:
    from genre_dist.acquire.importing import import_catalogue
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


def _fetch(arguments: Namespace) -> int:
    from genre_dist.acquire.fetching import FetchOptions, fetch, summary
    from genre_dist.acquire.tmdb import read_key
    from genre_dist.acquire.windows import all_years, parse_years

    settings = {name: value for name, value in vars(arguments).items() if name not in ("run", "key_file")}
    settings["key"] = read_key(arguments.key_file)
    settings["years"] = parse_years(arguments.years) if arguments.years else all_years()
    settings["languages"] = names(arguments.languages)
    options = FetchOptions(**settings)
    report = fetch(options)
    print("\n".join(summary(report, options)))
    if report.films:
        print(f"next: genre-dist pack --catalogue {arguments.out} --out shards/default")
    return 0 if report.is_complete() else 1


def _sample(arguments: Namespace) -> None:
    from genre_dist.acquire.sample import make_sample

    make_sample(arguments.films, arguments.seed, arguments.out)
    print(f"{arguments.out}: {arguments.films:,} procedural films")
    print(f"next: genre-dist pack --catalogue {arguments.out} --out shards/default")
