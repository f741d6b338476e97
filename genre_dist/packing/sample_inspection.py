"""Summary of a folder of shards of a declared data set."""

from rich.table import Table

from genre_dist.packing.inspection import BATCHES, vocabulary_line
from genre_dist.printable import printable, terminal
from genre_dist.stream.manifest import SPLITS
from genre_dist.stream.order import steps_per_epoch
from genre_dist.stream.sample_manifest import SampleManifest


def print_summary_of_samples(manifest: SampleManifest) -> None:
    """Print counts, sizes, fields, numbers, labels and the steps of an epoch."""
    console = terminal()
    declared, image = manifest.declared, manifest.image
    console.print(f"{manifest.folder}  fingerprint {manifest.fingerprint}")
    fields = ", ".join(f"{field.name} ({field.kind})" for field in declared.fields)
    console.print(f"fields: {fields}; split by {printable(declared.split_by)}")
    console.print(f"images {image['size']} x {image['size']} ({image['fit']})")
    console.print(vocabulary_line(manifest.text))
    for name, moments in manifest.numbers.items():
        columns = declared.by_name[name].columns
        rows = zip(columns, moments["mean"], moments["std"], strict=True)
        told = ", ".join(f"{printable(column)} {mean:.4g} +- {std:.4g}" for column, mean, std in rows)
        console.print(f"{name} in the train split: {told}")
    left_out = ", ".join(f"{count:,} with {printable(reason)}" for reason, count in manifest.left_out.items()) or "none"
    console.print(f"samples left out: {left_out}")
    names = tuple(declared.by_name)
    table = Table("split", "shards", "samples", *names, *(["all"] if len(names) > 1 else []), "MB")
    for split in SPLITS:
        shards = manifest.shards_of(split)
        wanted = ((), *((name,) for name in names), *([names] if len(names) > 1 else []))
        table.add_row(
            split,
            f"{len(shards):,}",
            *(f"{manifest.samples(split, fields):,}" for fields in wanted),
            f"{sum(shard.bytes for shard in shards) / 1e6:,.1f}",
        )
    console.print(table)
    steps = Table("steps an epoch, global batch", *map(str, BATCHES))
    for what, needed in {"any field": (), " + ".join(names): names}.items():
        samples = manifest.samples("train", needed)
        steps.add_row(what, *(f"{steps_per_epoch(samples, batch):,}" for batch in BATCHES))
    console.print(steps)
    labels = Table(f"{declared.label}, choose {declared.labels.choose}", *SPLITS)
    for number, name in enumerate(declared.labels.classes):
        labels.add_row(printable(name), *(f"{manifest.label_counts[split][number]:,}" for split in SPLITS))
    console.print(labels)
