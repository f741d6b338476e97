"""The console verbs evaluate and predict; they lock their folder before the heavy imports."""

import sys
from argparse import Namespace
from pathlib import Path

from genre_dist.config.run import CONFIG
from genre_dist.metrics.derived import refuse_other_folder
from genre_dist.parallel.one_run import writing
from genre_dist.printable import printable
from genre_dist.schema import plural
from genre_dist.verb_options import Verbs, add_run, add_split, add_verb, columns, pairs


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(verbs, "evaluate", _evaluate, "evaluate a run on a split (under torchrun: on several ranks)")
    add_run(verb)
    add_split(verb, "val")
    verb.add_argument("--shards", help="other shards than the run was trained on")
    hide = "evaluate val and the split as if no sample had this field, such as poster, into --out"
    verb.add_argument("--hide", metavar="FIELD", help=hide)
    verb.add_argument("--out", metavar="FOLDER", type=Path, help="with --hide: a new folder, not the run's")

    verb = add_verb(
        verbs,
        "predict",
        _predict,
        "labels of one sample, or of many (under torchrun: on several ranks)",
        "One sample: by a --field for each field of the data that the model was trained on; a film also by --poster, "
        "--overview and --title, or by --tmdb_id. Many: --catalogue FOLDER, or --table FILE (ids and the columns that "
        "the model was trained on) with --posters, found as import finds them, into a folder of Parquet parts, --out. "
        "Run again, it goes on.",
    )
    add_run(verb)
    add = verb.add_argument
    add(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the sample, repeated: a text, the path of an image, or numbers between commas, a missing one "
        "blank; a number also by the name of its column",
    )
    add("--poster", help="an image file")
    add("--overview", help="the film's overview")
    add("--title", help="the film's title, for models that were trained on titles")
    add("--tmdb_id", type=int, help="a film of TMDB; its key from TMDB_API_KEY or --key_file")
    add("--key_file", type=Path, help="holds the API key or bearer token")
    add("--api_url", default="https://api.themoviedb.org/3", help="TMDB's API, or a mirror of it")
    add("--image_url", default="https://image.tmdb.org/t/p", help="TMDB's posters, or a mirror of them")
    add("--catalogue", type=Path, help="predict all samples of a catalogue")
    add("--table", type=Path, help="predict all samples of a table: Parquet, CSV or JSON lines")
    posters = "the table's images: folders (with all below them) or tars; FIELD=PATH where there are several fields"
    add("--posters", type=Path, nargs="*", default=[], help=posters)
    add("--columns", nargs="*", default=[], metavar="NAME=COLUMN", help="films' tables: columns by another name")
    add("--poster_key", default="tmdb_id", help="films' tables: the column that poster files are named by")
    add("--out", type=Path, help="folder for the predictions of many samples")


def _evaluate(arguments: Namespace) -> None:
    if not (arguments.folder / CONFIG).is_file():
        raise ValueError(f"{arguments.folder}: not a run (it has no config.yaml)")
    if (arguments.hide is None) != (arguments.out is None):
        raise ValueError("--hide FIELD and --out FOLDER go together: the run's folder keeps its own evaluation")
    if arguments.out is not None:
        refuse_other_folder(arguments.out)
    with writing(arguments.out or arguments.folder) as held:
        from genre_dist.inference.evaluate_run import evaluate_hidden, evaluate_run
        from genre_dist.inference.trained_model import load_run
        from genre_dist.parallel.world import all_ranks

        with all_ranks() as world:
            held.share(world)
            run = load_run(arguments.folder, world.device, arguments.trust_code)
            where = arguments.split, arguments.shards, world
            if arguments.hide is None:
                evaluate_run(run, arguments.folder, *where)
            else:
                evaluate_hidden(run, arguments.folder, arguments.hide, arguments.out, *where)


def _predict(arguments: Namespace) -> None:
    if not (arguments.catalogue or arguments.table or arguments.posters or arguments.out):
        return _predict_one(arguments)
    if arguments.out is None:
        raise ValueError("where should the predictions go? --out FOLDER")
    if arguments.poster:
        raise ValueError("--poster is for one film; the posters of many are --posters FOLDERS_OR_TARS")
    if arguments.field:
        raise ValueError("--field is for one sample; the fields of many come from a --table or a --catalogue")
    with writing(arguments.out) as held:
        from genre_dist.inference.film_sources import source_of
        from genre_dist.inference.predict_many import predict_many
        from genre_dist.inference.trained_model import load_run
        from genre_dist.parallel.world import all_ranks

        named = columns(arguments.columns)
        source = source_of(arguments.catalogue, arguments.table, arguments.posters, named, arguments.poster_key)
        with all_ranks() as world:
            held.share(world)
            run = load_run(arguments.folder, world.device, arguments.trust_code)
            predict_many(run, arguments.folder, source, arguments.out, world)


def _predict_one(arguments: Namespace) -> None:
    import torch

    from genre_dist.inference.prediction import film_of_tmdb, predict, sample_of_options
    from genre_dist.inference.trained_model import load_run
    from genre_dist.metrics.thresholds import load_thresholds
    from genre_dist.tmdb.api import read_key

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(arguments.folder, device, arguments.trust_code)
    if arguments.tmdb_id is None:
        named = {
            name: value for name in ("poster", "overview", "title") if (value := getattr(arguments, name)) is not None
        }
        film = sample_of_options(run, named | pairs("--field", arguments.field, "title=Heat"))
    else:
        key = read_key(arguments.key_file)
        title, film = film_of_tmdb(run, arguments.tmdb_id, key, arguments.api_url, arguments.image_url)
        print(printable(title))
    thresholds = load_thresholds(arguments.folder, run.genres)
    predictions = predict(run, thresholds, film, device)
    if thresholds is None and run.declared.labels.choose == "many":
        print(
            f"no thresholds were fitted: {plural(run.declared.label)} are named at one half (`genre-dist evaluate "
            f"{printable(arguments.folder)} --split val` fits some)",
            file=sys.stderr,
        )
    for one in predictions:
        print(f"{one.probability:7.2%}  {printable(one.genre)}{'  named' if one.named else ''}")
