"""The study's console verbs: evaluate, predict, compare, explore, baseline, explain, study.

Each imports what it needs when the folder it writes is locked: a second writer is refused at once.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from genre_dist.atomic import remove_leftovers
from genre_dist.config.run import CONFIG
from genre_dist.lock import one_writer
from genre_dist.options import Verbs, columns, names
from genre_dist.parallel.launcher import own_rank
from genre_dist.parallel.one_run import Held, one_run
from genre_dist.printable import printable
from genre_dist.study.baselines import BASELINES


def add_verbs(verbs: Verbs) -> None:
    """Add this room's verbs to the console command."""

    def add_verb(
        name: str, run: Callable[[Namespace], int | None], help: str, about: str | None = None
    ) -> ArgumentParser:
        verb = verbs.add_parser(name, help=help, description=about)
        verb.set_defaults(run=run)
        return verb

    verb = add_verb("evaluate", _evaluate, "evaluate a run on a split (under torchrun: on several ranks)")
    _add_run(verb)
    _add_split(verb, "val")
    verb.add_argument("--shards", help="other shards than the run was trained on")

    verb = add_verb(
        "predict",
        _predict,
        "genres of one film, or of many (under torchrun: on several ranks)",
        "One film: by --poster, --overview and --title, or by --tmdb_id. Many: --catalogue FOLDER, or "
        "--table FILE (tmdb_id and the texts that the model was trained on) with --posters, found as import finds "
        "them, into a folder of Parquet parts, --out. Run again, it goes on.",
    )
    _add_run(verb)
    add = verb.add_argument
    add("--poster", type=Path, help="an image file")
    add("--overview", help="the film's overview")
    add("--title", help="the film's title, for models that were trained on titles")
    add("--tmdb_id", type=int, help="a film of TMDB; its key from TMDB_API_KEY or --key_file")
    add("--key_file", type=Path, help="holds the API key or bearer token")
    add("--api_url", default="https://api.themoviedb.org/3", help="TMDB's API, or a mirror of it")
    add("--image_url", default="https://image.tmdb.org/t/p", help="TMDB's posters, or a mirror of them")
    add("--catalogue", type=Path, help="predict all films of a catalogue")
    add("--table", type=Path, help="predict all films of a table: Parquet, CSV or JSON lines")
    posters = "the table's posters: folders (with all below them) or tars"
    add("--posters", type=Path, nargs="*", default=[], help=posters)
    add("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="the table's columns by another name")
    add("--poster_key", default="tmdb_id", help="the table's column that poster files are named by")
    add("--out", type=Path, help="folder for the predictions of many films")

    verb = add_verb("compare", _compare, "put runs side by side, with intervals for all differences; a report")
    runs = "NAME-seed0 NAME-seed1 ... count as one model"
    verb.add_argument("folders", metavar="RUN", type=Path, nargs="+", help=runs)
    _add_split(verb, "test")
    verb.add_argument("--out", type=Path, default=Path("report"), help="for index.html, comparison.md, comparison.json")
    verb.add_argument("--shards", help="where titles and posters are, if not where the runs had them")
    verb.add_argument("--resamples", type=int, default=10_000, help="of the films, for the intervals")
    verb.add_argument("--films", type=int, default=6, help="largest wins and losses to show")

    verb = add_verb("explore", _explore, "look at the films of shards or a catalogue: numbers, figures, a page")
    add = verb.add_argument
    add("source", metavar="SHARDS_OR_CATALOGUE", type=Path)
    add("--out", metavar="DIR", type=Path, required=True, help="for index.html, explore.json and PNGs")
    texts = ["overview", "title", "both"]
    add("--text", choices=texts, default="overview", help="a catalogue's text to look at")
    add("--poster_share", type=float, default=1.0, help="share of the posters looked at, drawn by film id")

    verb = add_verb(
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
    add("--memory", type=float, default=4.0, help="GiB for SVMs: so many genres are fitted at once")
    add("--workers", type=int, help="genres fitted at the same time; all cores by default")

    verb = add_verb("explain", _explain, "what on posters and in overviews speaks for a genre, and what each is worth")
    _add_run(verb)
    _add_split(verb, "test")
    add = verb.add_argument
    add("--out", type=Path, default=Path("explanation"), help="for index.html, PNGs and explanation.json")
    add("--films", default="", metavar="ID,ID", help="films to explain; the surest ones by default")
    add("--count", type=int, default=8, help="how many films, if none are named")
    add("--genres", type=int, default=2, help="genres explained for each film")
    add("--shards", type=Path, help="other shards than the run was trained on")
    add("--no_ablation", action="store_true", help="leave out what each medium is worth")

    verb = add_verb(
        "study",
        _study,
        "the whole chain by one command: baselines, text, poster, frozen, end to end, and the comparison",
        "Run the stages of a study's YAML one after the other. Run again, it skips what is done and goes "
        "on with what is not. Exit code 75: stopped early, to be continued by the same command.",
    )
    verb.add_argument("--config", type=Path, required=True, help="such as configs/study.yaml")
    verb.add_argument("--out", type=Path, required=True, help="for a folder a stage and seed, and the report")
    changes = "change the study: seeds=[0] overrides.train.epochs=3"
    verb.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help=changes)


def _add_run(verb: ArgumentParser) -> None:
    verb.add_argument("folder", metavar="RUN", type=Path)
    verb.add_argument(
        "--trust_code", action="store_true", help="run code that the config.yaml of a run made elsewhere names"
    )


def _add_split(verb: ArgumentParser, default: str) -> None:
    verb.add_argument("--split", choices=["train", "val", "test"], default=default)


@contextmanager
def _writing(folder: Path) -> Iterator[Held]:
    """Hold a folder, and remove what killed writers left in it. Raises BusyError if another process has it."""
    with one_run(folder) as held:
        if own_rank() == 0:
            remove_leftovers(folder)
        yield held


def _evaluate(arguments: Namespace) -> None:
    if not (arguments.folder / CONFIG).is_file():
        raise ValueError(f"{arguments.folder}: not a run (it has no config.yaml)")
    with _writing(arguments.folder) as held:
        from genre_dist.parallel.world import all_ranks
        from genre_dist.study.evaluate_run import evaluate_run
        from genre_dist.study.run import load_run

        with all_ranks() as world:
            held.share(world)
            run = load_run(arguments.folder, world.device, arguments.trust_code)
            evaluate_run(run, arguments.folder, arguments.split, arguments.shards, world)


def _predict(arguments: Namespace) -> None:
    if not (arguments.catalogue or arguments.table or arguments.posters or arguments.out):
        return _predict_one(arguments)
    if arguments.out is None:
        raise ValueError("where should the predictions go? --out FOLDER")
    if arguments.poster:
        raise ValueError("--poster is for one film; the posters of many are --posters FOLDERS_OR_TARS")
    with _writing(arguments.out) as held:
        from genre_dist.parallel.world import all_ranks
        from genre_dist.study.film_sources import source_of
        from genre_dist.study.predict_many import predict_many
        from genre_dist.study.run import load_run

        named = columns(arguments.columns)
        source = source_of(arguments.catalogue, arguments.table, arguments.posters, named, arguments.poster_key)
        with all_ranks() as world:
            held.share(world)
            run = load_run(arguments.folder, world.device, arguments.trust_code)
            predict_many(run, arguments.folder, source, arguments.out, world)


def _predict_one(arguments: Namespace) -> None:
    import torch

    from genre_dist.acquire.tmdb import read_key
    from genre_dist.study.prediction import film_of_options, film_of_tmdb, predict
    from genre_dist.study.run import load_run
    from genre_dist.study.thresholds import load_thresholds

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(arguments.folder, device, arguments.trust_code)
    if arguments.tmdb_id is None:
        film = film_of_options(run, arguments.poster, arguments.overview, arguments.title)
    else:
        key = read_key(arguments.key_file)
        title, film = film_of_tmdb(run, arguments.tmdb_id, key, arguments.api_url, arguments.image_url)
        print(printable(title))
    for one in predict(run, load_thresholds(arguments.folder, run.genres), film, device):
        print(f"{one.probability:7.2%}  {printable(one.genre)}{'  named' if one.named else ''}")


def _compare(arguments: Namespace) -> None:
    if arguments.resamples < 1 or arguments.films < 0:
        raise ValueError(f"--resamples is at least 1 and --films 0, not {arguments.resamples} and {arguments.films}")
    with _writing(arguments.out):
        from genre_dist.study.comparison import compare

        options = arguments.split, arguments.resamples, arguments.films, arguments.shards
        compare(arguments.folders, arguments.out, *options)
    print(f"the report: {printable(arguments.out / 'index.html')}")


def _explore(arguments: Namespace) -> None:
    with _writing(arguments.out):
        from genre_dist.study.explore.exploring import explore

        counts = explore(arguments.source, arguments.out, arguments.text, arguments.poster_share)
    print(f"{printable(arguments.source)}: {counts.films.sum():,} films")
    for what, films in counts.told.items():
        print(f"  {films:,} {what}")
    for fault in counts.faults:
        print(f"  {printable(fault)}")
    print(f"the page: {printable(arguments.out / 'index.html')}")


def _baseline(arguments: Namespace) -> None:
    kinds = tuple(BASELINES) if arguments.kind == "all" else names(arguments.kind)
    if unknown := [kind for kind in kinds if kind not in BASELINES]:
        raise ValueError(f"there is no baseline `{unknown[0]}`; there are {', '.join(BASELINES)}")
    folders = {kind: arguments.out / kind for kind in kinds}
    if len(kinds) == 1 and not arguments.folders:
        folders = {kinds[0]: arguments.out}
    with ExitStack() as stack:
        for folder in dict.fromkeys([arguments.out, *folders.values()]):
            stack.enter_context(_writing(folder))
        from genre_dist.study.baselines.baseline import baselines

        baselines(arguments.shards, folders, arguments.catalogue, arguments.memory, arguments.workers)


def _explain(arguments: Namespace) -> None:
    given = names(arguments.films)
    if wrong := [film for film in given if not (film.isdecimal() and int(film) < 2**63)]:
        raise ValueError(f"--films takes ids of films such as 603,604, not `{wrong[0]}`")
    with _writing(arguments.out):
        from genre_dist.study.explanation import explain

        explain(
            arguments.folder,
            arguments.out,
            split=arguments.split,
            films=[int(film) for film in given],
            count=arguments.count,
            genres=arguments.genres,
            shards=arguments.shards,
            ablation=not arguments.no_ablation,
            trust_code=arguments.trust_code,
        )
    print(f"the explanation: {printable(arguments.out / 'index.html')}")


def _study(arguments: Namespace) -> int:
    with one_writer(arguments.out) as lock:
        from genre_dist.study.chain.running import run_study

        return run_study(arguments.config, arguments.out, arguments.set, lock)
