"""The console verb pack; it imports only what it needs."""

from argparse import Namespace
from typing import Any

from genre_dist.verb_options import Verbs, names


def add_verbs(verbs: Verbs) -> None:
    """Add the verb of packing to the console command."""
    verb = verbs.add_parser(
        "pack",
        help="pack a catalogue into shards; run again to go on or to add new samples",
        description="Pack a catalogue into shards. A killed pack goes on where it stopped. On a finished folder and "
        "with the same options, samples that are new in the catalogue are appended in new shards; those packed before "
        "stay as they are, and so does the vocabulary. On several nodes: run every --part, at any time and in any "
        "order, then the same command with --merge.",
    )
    verb.add_argument("--catalogue", required=True, help="its folder or URL (s3://, ...)")
    verb.add_argument("--out", required=True, help="the shards' folder or URL")
    verb.add_argument(
        "--vectors",
        help="word vectors of any width, a file or URL: GloVe or word2vec, .txt .vec .bin, also as .gz or in a .zip",
    )
    verb.add_argument(
        "--tokenizer",
        default="words",
        help="what makes tokens of a text: `words` (lower case, no punctuation, a vocabulary of the train split), or a "
        "tokenizer.json of the tokenizers library: its path or folder, an installed package that has one, or a model "
        "in the Hugging Face cache",
    )
    verb.add_argument(
        "--require",
        help="leave out what lacks one of these fields; '' keeps all. Of films poster,overview by default, else ''",
    )
    verb.add_argument(
        "--text", choices=["overview", "title", "both"], help="what is encoded of films; overview by default"
    )
    verb.add_argument("--size", type=int, default=256, help="side of the square images, pixels")
    verb.add_argument("--fit", choices=["squash", "crop", "pad"], default="squash", help="how images become square")
    verb.add_argument("--quality", type=int, default=90, help="JPEG quality")
    verb.add_argument("--shard_size", type=int, default=1000, help="samples a shard")
    verb.add_argument("--workers", type=int, help="processes; all cores by default")
    how = verb.add_mutually_exclusive_group()
    how.add_argument(
        "--part",
        metavar="I/N",
        help="pack only the shards number I mod N and write no manifest: 0/4 to 3/4, or 1/4 to 4/4, make all; "
        "`slurm` takes both from the job array (SLURM_ARRAY_TASK_ID and _COUNT)",
    )
    how.add_argument("--merge", action="store_true", help="check that all parts are there and write the manifest")
    how.add_argument("--overwrite", action="store_true", help="replace shards of other samples or options")
    verb.set_defaults(run=_pack)


def _pack(arguments: Namespace) -> None:
    from genre_dist.packing.catalogue_rows import schema_of
    from genre_dist.packing.pack import merge_parts, pack, pack_part
    from genre_dist.packing.parts import parse_part
    from genre_dist.packing.tokenizer import token_name
    from genre_dist.printable import printable
    from genre_dist.schema import TMDB
    from genre_dist.storage import any_path, exists
    from genre_dist.stream.manifest import FILE, load_manifest
    from genre_dist.workers import usable_cores

    catalogue, out = any_path(arguments.catalogue), any_path(arguments.out)
    schema = schema_of(catalogue)
    options = {name: getattr(arguments, name) for name in ("size", "fit", "quality", "shard_size", "tokenizer")}
    options["vectors"] = any_path(arguments.vectors) if arguments.vectors else None
    options |= _options_of_films(arguments) if schema == TMDB else _options_of_samples(arguments)
    workers = arguments.workers or usable_cores()
    if arguments.part:
        part = parse_part(arguments.part)
        shards = pack_part(catalogue, out, part, workers=workers, **options)
        print(f"{out}: part {part[0]}/{part[1]} is finished, {shards:,} shards")
        print("next, when all parts are finished: the same command with --merge instead of --part")
        return
    before = load_manifest(out) if exists(out / FILE) and not arguments.overwrite else None
    if arguments.merge:
        manifest = merge_parts(catalogue, out, **options)
    else:
        manifest = pack(catalogue, out, workers=workers, overwrite=arguments.overwrite, **options)
    if before:
        added = sum(shard.samples for shard in manifest.shards) - sum(shard.samples for shard in before.shards)
        nothing = f"nothing to add: the {schema.samples} of {catalogue} are packed already"
        print(f"{added:,} {schema.samples} added" if added else nothing)
    counts = ", ".join(f"{manifest.samples(split):,} {split}" for split in ("train", "val", "test"))
    print(f"{out}: {len(manifest.shards)} shards, {counts}; {manifest.text['words']:,} {token_name(manifest.text)}")
    for reason, count in manifest.left_out.items():
        print(f"  {count:,} {schema.samples} left out: {printable(reason)}")
    print(f"next: genre-dist inspect {out}")


def _options_of_films(arguments: Namespace) -> dict[str, Any]:
    require = "poster,overview" if arguments.require is None else arguments.require
    return {"require": names(require), "text": arguments.text or "overview"}


def _options_of_samples(arguments: Namespace) -> dict[str, Any]:
    if arguments.text is not None:
        raise ValueError("--text is for films; of other data sets the fields of their schema are packed")
    return {"require": names(arguments.require or "")}
