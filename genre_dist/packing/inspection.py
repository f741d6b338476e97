"""Summary of a folder of shards."""

import numpy as np
from rich.table import Table

from genre_dist.packing.tokenizer import token_name
from genre_dist.printable import printable, terminal
from genre_dist.stream.index import SplitIndex
from genre_dist.stream.manifest import SPLITS, Manifest, Text
from genre_dist.stream.order import Rows, steps_per_epoch

BATCHES = (32, 64, 256, 1024)  # global batch sizes for which inspect prints the steps of an epoch


def vocabulary_line(text: Text) -> str:
    """What the tokens are."""
    if "tokenizer" in text:
        return f"tokenizer {text['vocabulary']} {text['vocabulary_sha256'][:16]}, {text['words']:,} tokens"
    vectors = f"vectors of {text['dim']} numbers" if text["vectors"] else "no word vectors"
    return f"vocabulary {text['words']:,} words, {vectors}"


def print_summary(manifest: Manifest) -> None:
    """Print counts, sizes, text lengths, genres, steps per epoch. Raises ValueError for a missing or damaged index."""
    console = terminal()
    text, image = manifest.text, manifest.image
    console.print(f"{manifest.folder}  fingerprint {manifest.fingerprint}")
    console.print(f"posters {image['size']} x {image['size']} ({image['fit']}), text: {text['source']}")
    console.print(vocabulary_line(text))
    left_out = ", ".join(f"{count:,} with {printable(reason)}" for reason, count in manifest.left_out.items()) or "none"
    console.print(f"films left out: {left_out}")
    table = Table(
        "split", "shards", "films", "poster", "text", "both", "MB", f"{token_name(text)}: median", "95 %", "most"
    )
    for split in SPLITS:
        shards = manifest.shards_of(split)
        lengths = _lengths(manifest, split)
        table.add_row(
            split,
            f"{len(shards):,}",
            *(f"{manifest.samples(split, members):,}" for members in ((), ("poster",), ("overview",))),
            f"{manifest.samples(split, ('poster', 'overview')):,}",
            f"{sum(shard.bytes for shard in shards) / 1e6:,.1f}",
            *(f"{value:,.0f}" for value in lengths),
        )
    console.print(table)
    steps = Table("steps an epoch, global batch", *map(str, BATCHES))
    for members in (("poster", "overview"), ("overview",), ("poster",)):
        samples = manifest.samples("train", members)
        steps.add_row(" + ".join(members), *(f"{steps_per_epoch(samples, batch):,}" for batch in BATCHES))
    console.print(steps)
    genres = Table("genre", *SPLITS)
    for number, genre in enumerate(manifest.genres):
        genres.add_row(printable(genre.name), *(f"{manifest.genre_counts[split][number]:,}" for split in SPLITS))
    console.print(genres)


def _lengths(manifest: Manifest, split: str) -> tuple[float, float, float]:
    """Median, 95th percentile and maximum of the texts' lengths, from counts of each length."""
    counts = np.zeros(65_536, np.int64)
    index = SplitIndex(manifest, split, ("overview",))
    for shard, samples in enumerate(index.sizes):
        records = index.records(Rows(np.full(samples, shard), np.arange(samples)))
        counts += np.bincount(records["tokens"], minlength=65_536)
    if not counts.any():
        return 0, 0, 0
    ends = np.cumsum(counts)
    median, high = (int(np.searchsorted(ends, share * ends[-1])) for share in (0.5, 0.95))
    return median, high, int(np.flatnonzero(counts)[-1])
