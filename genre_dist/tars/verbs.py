"""Console verbs of the stream: index, order. Each imports only what it needs."""

from argparse import Namespace

from genre_dist.verb_options import Verbs, names

MOST_NOTES = 20


def add_verbs(verbs: Verbs) -> None:
    """Add this package's verbs to the console command."""
    verb = verbs.add_parser(
        "index",
        help="make the index of packed shards again, or list anyone's WebDataset tars",
        description="For a folder of packed shards: make the index of every shard again, where it was lost or damaged. "
        "For anyone's WebDataset tars (files, URLs, or folders of *.tar): index and list them, so that "
        "genre_dist.stream can read their samples in its order; tars that are indexed already are left alone.",
    )
    verb.add_argument("shards", nargs="+", metavar="SHARDS_OR_TARS", help="a folder of packed shards, or tars")
    verb.add_argument("--out", help="folder or URL for the listing of tars; by default the one folder that is named")
    verb.add_argument("--workers", type=int, help="processes; all cores by default")
    verb.set_defaults(run=_index)

    verb = verbs.add_parser("order", help="print which films each training step takes: step<TAB>ids")
    verb.add_argument("shards", help="their folder or URL")
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


def _index(arguments: Namespace) -> None:

    from genre_dist.atomic import remove_leftovers
    from genre_dist.lock import one_writer
    from genre_dist.storage import any_path, exists, inside
    from genre_dist.stream.foreign import FOLDER, find_tars, index_tars
    from genre_dist.stream.indexing import index_shards
    from genre_dist.stream.manifest import FILE, load_manifest
    from genre_dist.workers import usable_cores

    folder = any_path(arguments.shards[0])
    if len(arguments.shards) == 1 and arguments.out is None and exists(folder / FILE):
        with one_writer(folder):
            remove_leftovers(folder)
            manifest = load_manifest(folder)
            indexed = index_shards(manifest)
        print(f"{folder}: {indexed.samples:,} samples of {len(manifest.shards)} shards indexed")
        if indexed.unread:
            print(f"note: {indexed.unread:,} texts cannot be read: genre-dist inspect {folder} --verify names them")
        return
    tars = find_tars([any_path(named) for named in arguments.shards])
    if arguments.out is None and tars[0] == folder:
        raise ValueError("where is the listing of these tars to go? Name a folder with --out")
    out = folder if arguments.out is None else any_path(arguments.out)
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


def _order(arguments: Namespace) -> None:
    from genre_dist.stream import EpochOrder, load_manifest
    from genre_dist.tars.sample_reader import reader_of

    manifest = load_manifest(arguments.shards)
    members = manifest.require if arguments.members is None else names(arguments.members)
    reader = reader_of(manifest, "train", members, arguments.max_tokens)
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
