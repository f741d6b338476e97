"""Console verbs for packed shards and anyone's tars: index, inspect, order. Each imports only what it needs."""

from argparse import Namespace
from typing import TYPE_CHECKING

from genre_dist.catalogue.verbs import add_declaring
from genre_dist.verb_options import Verbs, names

if TYPE_CHECKING:
    from genre_dist.schema import Schema
    from genre_dist.storage import AnyPath

MOST_NOTES = 20


def add_verbs(verbs: Verbs) -> None:
    """Add this package's verbs to the console command."""
    verb = verbs.add_parser(
        "index",
        help="make the index of packed shards again, or list anyone's WebDataset tars",
        description="For a folder of packed shards: make the index of every shard again, where it was lost or damaged. "
        "For anyone's WebDataset tars (files, URLs, or folders of *.tar): index and list them, so that "
        "genre_dist.stream can read their samples in its order. With --labels, or --schema: list them with labels and "
        "fields, so that --out is trained on as packed shards are. Tars that are listed already are left alone.",
    )
    verb.add_argument("shards", nargs="+", metavar="SHARDS_OR_TARS", help="a folder of packed shards, or tars")
    verb.add_argument("--out", help="folder or URL for the listing of tars; by default the one folder that is named")
    verb.add_argument("--workers", type=int, help="processes; all cores by default")
    own = verb.add_argument_group(
        "to train on the tars",
        "A COLUMN is an extension (txt, cls), json.KEY or json.KEY.SUB, or __key__, which is the --id by default. "
        "--split_by __file__ takes the split from the word train, val or test in a tar's name.",
    )
    add_declaring(own)
    own.add_argument(
        "--image", metavar="EXTENSION", nargs="?", const="", help="images: jpg|png, or all without a value"
    )
    own.add_argument("--tokenizer", help="as of `pack`: `words`, or a tokenizer.json")
    own.add_argument("--vectors", help="word vectors, a file or URL, as of `pack`")
    own.add_argument("--size", type=int, help="side of the square that images are resized to, 256 by default")
    own.add_argument("--fit", choices=["squash", "crop", "pad"], help="how images become square; squash by default")
    verb.set_defaults(run=_index)

    verb = verbs.add_parser("inspect", help="print what is in a folder of shards")
    verb.add_argument("shards", help="their folder or URL")
    verb.add_argument("--verify", action="store_true", help="check every checksum and every sample")
    verb.set_defaults(run=_inspect)

    verb = verbs.add_parser("order", help="print which samples each training step takes: step<TAB>ids")
    verb.add_argument("shards", help="their folder or URL")
    verb.add_argument("--global_batch", type=int, required=True)
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--epoch", type=int, default=0)
    verb.add_argument("--steps", default=":", metavar="A:B", help="steps of the epoch, from A up to but without B")
    verb.add_argument("--world", type=int, default=1, help="number of ranks")
    verb.add_argument("--rank", type=int, help="only this rank's samples")
    verb.add_argument("--members", help="what the model needs of a sample; what the shards were packed to require")
    verb.add_argument("--block", type=int, default=32, help="data.block of the run")
    verb.add_argument("--by_length", type=float, default=0.0, help="data.by_length of the run")
    verb.add_argument("--max_tokens", type=int, default=256, help="data.max_tokens of the run")
    verb.add_argument("--last_batch", choices=["keep", "drop"], default="keep", help="data.last_batch of the run")
    verb.set_defaults(run=_order)


def _index(arguments: Namespace) -> None:
    if (schema := _schema(arguments)) is not None:
        _list_samples(arguments, schema)
        return
    from genre_dist.atomic import remove_leftovers
    from genre_dist.lock import one_writer
    from genre_dist.storage import any_path, exists, inside
    from genre_dist.stream.foreign import FOLDER, index_tars
    from genre_dist.stream.indexing import index_shards
    from genre_dist.stream.manifest import FILE, TarManifest, load_manifest
    from genre_dist.workers import usable_cores

    folder = any_path(arguments.shards[0])
    if len(arguments.shards) == 1 and arguments.out is None and exists(folder / FILE):
        with one_writer(folder):
            remove_leftovers(folder)
            manifest = load_manifest(folder)
            if isinstance(manifest, TarManifest):
                raise ValueError(f"{folder} lists tars to train on: run the command again that listed them")
            indexed = index_shards(manifest)
        print(f"{folder}: {indexed.samples:,} samples of {len(manifest.shards)} shards indexed")
        if indexed.unread:
            print(f"note: {indexed.unread:,} texts cannot be read: genre-dist inspect {folder} --verify names them")
        return
    tars, out = _places(arguments)
    with one_writer(out):
        for written in (out, out / FOLDER):
            remove_leftovers(written)
        listing = index_tars(tars, out, arguments.workers or usable_cores())
    samples = sum(tar.samples for tar in listing.tars)
    print(f"{out}: {samples:,} samples of {len(listing.tars):,} tars listed in tars.json")
    for name, count in sorted(listing.extensions.items(), key=lambda item: -item[1]):
        print(f"  {count:,} with .{name}")
    notes = [f"{inside(out, tar.file)}: {note}" for tar in listing.tars for note in tar.notes]
    print("".join(f"note: {note}\n" for note in notes[:MOST_NOTES]), end="")
    if len(notes) > MOST_NOTES:
        print(f"note: {len(notes) - MOST_NOTES:,} more such notes, in tars.json")
    print("next: genre_dist.stream.TarReader reads them (shards/README.md)")


def _places(arguments: Namespace) -> "tuple[list[AnyPath], AnyPath]":
    """The tars, and the folder of their listing."""
    from genre_dist.storage import any_path
    from genre_dist.stream.foreign import find_tars

    folder = any_path(arguments.shards[0])
    tars = find_tars([any_path(named) for named in arguments.shards])
    if arguments.out is None and tars[0] == folder:
        raise ValueError("where is the listing of these tars to go? Name a folder with --out")
    return tars, folder if arguments.out is None else any_path(arguments.out)


def _schema(arguments: Namespace) -> "Schema | None":
    """The schema of the options for tars to train on; None without any. Raises ValueError as import does."""
    from genre_dist.catalogue.import_options import declared_schema
    from genre_dist.tars.tar_samples import KEY

    own = ("id", "labels", "classes", "choose", "unlabelled", "split_by", "text", "numbers", "schema", "image")
    given = [name for name in (*own, "tokenizer", "vectors", "size", "fit") if getattr(arguments, name) is not None]
    if not given:
        return None
    if arguments.schema is None and arguments.labels is None:
        raise ValueError(f"--{given[0]} is for tars to train on: name their labels, --labels COLUMN or --schema")
    if arguments.schema is not None and arguments.image is not None:
        raise ValueError("--schema says what --image does; give one of them")
    if arguments.schema is None and (arguments.text or arguments.numbers or arguments.image) is None:
        raise ValueError("nothing to learn from: give --image, --text COLUMN or --numbers COLUMN")
    as_import = Namespace(**vars(arguments), posters=arguments.image is not None, columns=[])
    as_import.id = arguments.id or (None if arguments.schema else KEY)
    as_import.poster_key = arguments.image or None
    return declared_schema(as_import)


def _list_samples(arguments: Namespace, schema: "Schema") -> None:
    from genre_dist.atomic import remove_leftovers
    from genre_dist.catalogue.importing_samples import report_lines
    from genre_dist.catalogue.sample_rows import RowReader
    from genre_dist.lock import one_writer
    from genre_dist.storage import any_path, exists
    from genre_dist.stream.foreign import FOLDER
    from genre_dist.stream.manifest import FILE, SPLITS, lists_tars
    from genre_dist.tars.tar_listing import TarOptions, list_samples
    from genre_dist.workers import usable_cores

    tars, out = _places(arguments)
    options = TarOptions(
        RowReader(schema, arguments.unlabelled or "leave_out"),
        arguments.tokenizer or "words",
        256 if arguments.size is None else arguments.size,
        arguments.fit or "squash",
    )
    vectors = any_path(arguments.vectors) if arguments.vectors else None
    with one_writer(out):
        if exists(out / FILE) and not lists_tars(out):
            raise ValueError(f"{out} holds other shards; list the tars in another folder, --out")
        for written in (out, out / FOLDER):
            remove_leftovers(written)
        manifest, report = list_samples(tars, out, options, vectors, arguments.workers or usable_cores())
    counts = ", ".join(f"{manifest.samples(split):,} {split}" for split in SPLITS)
    print(f"{out}: {report.samples:,} samples of {len(tars):,} tars, {counts}")
    for line in report_lines(report):
        print(f"  {line}")
    print(f"next: genre-dist inspect {out}; torchrun -m genre_dist.train --data.shards {out}")


def _order(arguments: Namespace) -> None:
    from genre_dist.stream import EpochOrder, load_manifest
    from genre_dist.tars.sample_reader import reader_type

    manifest = load_manifest(arguments.shards)
    members = manifest.require if arguments.members is None else names(arguments.members)
    reader = reader_type(manifest)(manifest, "train", members, arguments.max_tokens)
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
        print(f"{step}\t{' '.join(reader.keys(order.rows(step, first, last)))}")


def _slice(text: str) -> slice:
    first, colon, last = text.partition(":")
    try:
        return slice(int(first or 0), int(last) if last else None) if colon else slice(int(first), int(first) + 1)
    except ValueError:
        raise ValueError(f"--steps takes A:B, such as 0:10, not `{text}`") from None


def _inspect(arguments: Namespace) -> int:
    from contextlib import nullcontext, suppress

    from genre_dist.packing.inspection import print_summary
    from genre_dist.packing.verification import verify
    from genre_dist.storage import inside
    from genre_dist.stream.manifest import TarManifest, load_manifest
    from genre_dist.tars.tar_verification import verify_tars

    manifest = load_manifest(arguments.shards)
    with suppress(ValueError) if arguments.verify else nullcontext():  # `verify` reports the fault below
        print_summary(manifest)
        if isinstance(manifest, TarManifest):
            files = sorted({shard.file for shard in manifest.shards})
            print(f"samples of {len(files):,} tars where they lie, such as {inside(manifest.folder, files[0])}")
    if not arguments.verify:
        return 0
    faults = verify_tars(manifest) if isinstance(manifest, TarManifest) else verify(manifest)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else f"verified: {len(manifest.shards)} shards are whole")
    return 1 if faults else 0
