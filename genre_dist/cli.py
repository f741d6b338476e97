"""The console command `genre-dist`: one verb a stage. Each verb imports only what it needs."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. User mistakes end with one line on stderr and exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="genre-dist",
        description="Film genres from posters and overviews: from raw films to a trained, evaluated model. "
        "Training itself: torchrun --nproc_per_node=N -m genre_dist.train",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("import", help="make a catalogue from a table and posters")
    verb.add_argument("--table", type=Path, required=True, help="Parquet, CSV or JSON lines, one film a row")
    verb.add_argument("--posters", type=Path, nargs="*", default=[], help="folders or tar files of poster images")
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

    verb = verbs.add_parser(
        "pack",
        help="pack a catalogue into shards; run again to go on or to add new films",
        description="Pack a catalogue into shards. A killed pack goes on where it stopped. On a finished folder and "
        "with the same options, films that are new in the catalogue are appended in new shards; those packed before "
        "stay as they are, and so does the vocabulary. On several nodes: run every --part, at any time and in any "
        "order, then the same command with --merge.",
    )
    verb.add_argument("--catalogue", type=Path, required=True)
    verb.add_argument("--out", type=Path, required=True, help="the shards' folder")
    verb.add_argument("--vectors", type=Path, help="word vectors: GloVe or word2vec, .txt .bin .gz .zip, any width")
    verb.add_argument(
        "--require", default="poster,overview", help="leave out films that lack one of these; '' keeps all"
    )
    verb.add_argument("--text", choices=["overview", "title", "both"], default="overview", help="what is encoded")
    verb.add_argument("--size", type=int, default=256, help="side of the square posters, pixels")
    verb.add_argument("--fit", choices=["squash", "crop", "pad"], default="squash", help="how posters become square")
    verb.add_argument("--quality", type=int, default=90, help="JPEG quality")
    verb.add_argument("--shard_size", type=int, default=1000, help="films a shard")
    verb.add_argument("--workers", type=int, help="processes; all cores by default")
    how = verb.add_mutually_exclusive_group()
    how.add_argument(
        "--part",
        metavar="I/N",
        help="pack only the shards number I mod N and write no manifest: 0/4 to 3/4, or 1/4 to 4/4, make all; "
        "`slurm` takes both from the job array (SLURM_ARRAY_TASK_ID and _COUNT)",
    )
    how.add_argument("--merge", action="store_true", help="check that all parts are there and write the manifest")
    how.add_argument("--overwrite", action="store_true", help="replace shards of other films or options")
    verb.set_defaults(run=_pack)

    verb = verbs.add_parser("index", help="make the index of packed shards again, where it was lost or damaged")
    verb.add_argument("shards", type=Path)
    verb.set_defaults(run=_index)

    verb = verbs.add_parser("inspect", help="print what is in a folder of shards")
    verb.add_argument("shards", type=Path)
    verb.add_argument("--verify", action="store_true", help="check every checksum and every sample")
    verb.set_defaults(run=_inspect)

    verb = verbs.add_parser("order", help="print which films each training step takes: step<TAB>ids")
    verb.add_argument("shards", type=Path)
    verb.add_argument("--global_batch", type=int, required=True)
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--epoch", type=int, default=0)
    verb.add_argument("--steps", default=":", metavar="A:B", help="steps of the epoch, from A up to but without B")
    verb.add_argument("--world", type=int, default=1, help="number of ranks")
    verb.add_argument("--rank", type=int, help="only this rank's films")
    verb.add_argument("--members", help="what the model needs of a film; what the shards were packed to require")
    verb.add_argument("--block", type=int, default=32, help="data.block of the run")
    verb.add_argument("--by_length", type=float, default=0.0, help="data.by_length of the run")
    verb.add_argument("--max_tokens", type=int, default=256, help="data.max_tokens of the run")
    verb.add_argument("--last_batch", choices=["keep", "drop"], default="keep", help="data.last_batch of the run")
    verb.set_defaults(run=_order)

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

    verb = verbs.add_parser("compare", help="put runs side by side, with intervals for their differences")
    verb.add_argument("folders", metavar="RUN", type=Path, nargs="+")
    verb.add_argument("--split", choices=["train", "val", "test"], default="test")
    verb.add_argument("--out", type=Path, default=Path("report"), help="where comparison.json goes")
    verb.set_defaults(run=_compare)
    return parser


def _import(arguments: Namespace) -> None:
    from genre_dist.acquire.importing import import_catalogue

    columns = {}
    for pair in arguments.columns:
        ours, equals, theirs = pair.partition("=")
        if not equals:
            raise ValueError(f"--columns takes pairs such as overview=plot, not `{pair}`")
        columns[ours] = theirs
    report = import_catalogue(
        arguments.table, arguments.posters, arguments.out, columns, arguments.poster_key, arguments.overwrite
    )
    print(f"{arguments.out}: {report.rows:,} films, {report.with_poster:,} with a poster")
    notes = {
        "without a known genre (pack leaves them out)": report.without_known_genre,
        "rows with an id that was there before, left out": report.duplicates,
        "posters without a row, left out": report.posters_without_row,
    }
    for note, count in notes.items():
        if count:
            print(f"  {count:,} {note}")
    for genre, count in sorted(report.unknown_genres.items(), key=lambda item: -item[1])[:10]:
        print(f"  unknown genre `{genre}` dropped from {count:,} films")
    print(f"next: genre-dist pack --catalogue {arguments.out} --out shards/default")


def _fetch(arguments: Namespace) -> int:
    from genre_dist.acquire.fetching import FetchOptions, fetch, summary
    from genre_dist.acquire.tmdb import read_key
    from genre_dist.acquire.windows import all_years, parse_years

    settings = {name: value for name, value in vars(arguments).items() if name not in ("run", "key_file")}
    settings["key"] = read_key(arguments.key_file)
    settings["years"] = parse_years(arguments.years) if arguments.years else all_years()
    settings["languages"] = _names(arguments.languages)
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


def _pack(arguments: Namespace) -> None:
    import os

    from genre_dist.prepare.pack import merge_parts, pack, pack_part
    from genre_dist.prepare.parts import parse_part
    from genre_dist.stream.manifest import FILE, load_manifest

    catalogue, out = arguments.catalogue, arguments.out
    options = {name: getattr(arguments, name) for name in ("vectors", "text", "size", "fit", "quality", "shard_size")}
    options["require"] = _names(arguments.require)
    workers = arguments.workers or os.cpu_count() or 1
    if arguments.part:
        part = parse_part(arguments.part)
        shards = pack_part(catalogue, out, part, workers=workers, **options)
        print(f"{out}: part {part[0]}/{part[1]} is finished, {shards:,} shards")
        print("next, when all parts are finished: the same command with --merge instead of --part")
        return
    before = load_manifest(out) if (out / FILE).is_file() and not arguments.overwrite else None
    if arguments.merge:
        manifest = merge_parts(catalogue, out, **options)
    else:
        manifest = pack(catalogue, out, workers=workers, overwrite=arguments.overwrite, **options)
    if before:
        added = sum(shard.samples for shard in manifest.shards) - sum(shard.samples for shard in before.shards)
        print(f"{added:,} films added" if added else f"nothing to add: the films of {catalogue} are packed already")
    counts = ", ".join(f"{manifest.samples(split):,} {split}" for split in ("train", "val", "test"))
    print(f"{out}: {len(manifest.shards)} shards, {counts}; {manifest.text['words']:,} words")
    for reason, count in manifest.left_out.items():
        print(f"  {count:,} films left out: {reason}")
    print(f"next: genre-dist inspect {out}")


def _index(arguments: Namespace) -> None:
    from genre_dist.stream.indexing import index_shards
    from genre_dist.stream.manifest import load_manifest

    manifest = load_manifest(arguments.shards)
    print(f"{arguments.shards}: {index_shards(manifest):,} samples of {len(manifest.shards)} shards indexed")


def _inspect(arguments: Namespace) -> int:
    from genre_dist.prepare.inspection import print_summary, verify
    from genre_dist.stream.manifest import load_manifest

    manifest = load_manifest(arguments.shards)
    print_summary(manifest)
    if not arguments.verify:
        return 0
    faults = verify(manifest)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else f"verified: {len(manifest.shards)} shards are whole")
    return 1 if faults else 0


def _order(arguments: Namespace) -> None:
    from genre_dist.stream import EpochOrder, ShardReader, load_manifest

    manifest = load_manifest(arguments.shards)
    members = manifest.require if arguments.members is None else _names(arguments.members)
    reader = ShardReader(manifest, "train", members, arguments.max_tokens)
    index = reader.index
    batch, world = arguments.global_batch, arguments.world
    if arguments.block < 1:
        raise ValueError(f"--block is at least 1, not {arguments.block}")
    if batch < 1 or world < 1 or batch % world:
        raise ValueError(f"{world} ranks cannot share a global batch of {batch} evenly")
    if arguments.rank is not None and not 0 <= arguments.rank < world:
        raise ValueError(f"--rank {arguments.rank} is not one of {world} ranks (0 to {world - 1})")
    order = EpochOrder(
        index.sizes,
        batch,
        arguments.seed,
        arguments.epoch,
        arguments.block,
        arguments.last_batch,
        arguments.by_length,
        reader.lengths,
    )
    share = batch // world
    first, last = (0, batch) if arguments.rank is None else (arguments.rank * share, (arguments.rank + 1) * share)
    for step in range(order.steps)[_slice(arguments.steps)]:
        print(f"{step}\t{' '.join(map(str, index.ids(order.rows(step, first, last))))}")


def _slice(text: str) -> slice:
    first, colon, last = text.partition(":")
    try:
        return slice(int(first or 0), int(last) if last else None) if colon else slice(int(first), int(first) + 1)
    except ValueError:
        raise ValueError(f"--steps takes A:B, such as 0:10, not `{text}`") from None


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
    from genre_dist.study.comparison import compare

    compare(arguments.folders, arguments.split, arguments.out)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
