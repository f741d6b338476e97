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
    """Print counts, sizes, fields, text lengths, numbers, labels and steps of an epoch.

    Raises ValueError for a missing or damaged index.
    """
    console = terminal()
    declared, text, image = manifest.declared, manifest.text, manifest.image
    console.print(f"{manifest.folder}  fingerprint {manifest.fingerprint}")
    fields = ", ".join(f"{field.name} ({field.kind})" for field in declared.fields)
    console.print(f"fields: {fields}; split by {printable(declared.split_by)}")
    console.print(f"images {image['size']} x {image['size']} ({image['fit']}), text: {text['source']}")
    console.print(vocabulary_line(text))
    for name, moments in manifest.numbers.items():
        columns = declared.by_name[name].columns
        rows = zip(columns, moments["mean"], moments["std"], strict=True)
        figures = ", ".join(f"{printable(column)} {mean:.4g} +- {std:.4g}" for column, mean, std in rows)
        console.print(f"{name} in the train split: {figures}")
    left_out = ", ".join(f"{count:,} with {printable(reason)}" for reason, count in manifest.left_out.items()) or "none"
    console.print(f"{declared.samples} left out: {left_out}")
    names = tuple(declared.by_name)
    together = {name: (name,) for name in names} | ({"all": names} if len(names) > 1 else {})
    table = Table("", *SPLITS)
    shards = [manifest.shards_of(split) for split in SPLITS]
    table.add_row("shards", *(f"{len(own):,}" for own in shards))
    table.add_row("MB", *(f"{sum(shard.bytes for shard in own) / 1e6:,.1f}" for own in shards))
    for what, wanted in {declared.samples: (), **together}.items():
        table.add_row(what, *(f"{manifest.samples(split, wanted):,}" for split in SPLITS))
    lengths = zip(*(_lengths(manifest, split) for split in SPLITS), strict=True)
    for what, values in zip(("median", "95 %", "most"), lengths, strict=True):
        table.add_row(f"{token_name(text)} of a text, {what}", *(f"{value:,}" for value in values))
    console.print(table)
    steps = Table("steps an epoch, global batch", *map(str, BATCHES))
    counts = {"any of them": manifest.samples("train", names, any_of=True)} if len(names) > 1 else {}
    counts |= {what: manifest.samples("train", wanted) for what, wanted in together.items()}
    for what, samples in counts.items():
        steps.add_row(what, *(f"{steps_per_epoch(samples, batch):,}" for batch in BATCHES))
    console.print(steps)
    labels = Table(f"{declared.label}, choose {declared.labels.choose}", *SPLITS)
    for number, label in enumerate(manifest.genres):
        labels.add_row(printable(label.name), *(f"{manifest.genre_counts[split][number]:,}" for split in SPLITS))
    console.print(labels)


def _lengths(manifest: Manifest, split: str) -> tuple[int, int, int]:
    """Median, 95th percentile and maximum of the lengths of samples' longest texts, from counts of each length."""
    counts = np.zeros(65_536, np.int64)
    texts = tuple(field.name for field in manifest.declared.fields if field.kind == "text")
    index = SplitIndex(manifest, split, texts, any_of=True)
    for shard, samples in enumerate(index.sizes):
        records = index.records(Rows(np.full(samples, shard), np.arange(samples)))
        counts += np.bincount(records["tokens"], minlength=65_536)
    if not counts.any():
        return 0, 0, 0
    ends = np.cumsum(counts)
    median, high = (int(np.searchsorted(ends, share * ends[-1])) for share in (0.5, 0.95))
    return median, high, int(np.flatnonzero(counts)[-1])
