"""The console verb fetch; it imports only what it needs."""

from argparse import Namespace
from pathlib import Path

from genre_dist.verb_options import Verbs, names


def add_verbs(verbs: Verbs) -> None:
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


def _fetch(arguments: Namespace) -> int:
    from genre_dist.tmdb.api import read_key
    from genre_dist.tmdb.fetching import FetchOptions, fetch, summary
    from genre_dist.tmdb.windows import all_years, parse_years

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
