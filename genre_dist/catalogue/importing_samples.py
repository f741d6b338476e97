"""Import of a declared data set: any table and any folders or tars of images become a catalogue, as a schema says.

It streams as the import of films does: the table for ids, labels and every mistake (before anything is written), the
images, and the table again to write the rows. Memory holds a few small entries a sample.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from genre_dist.catalogue.catalogue import holds_catalogue, remove_catalogue, remove_partial_files
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import find_posters, further_files
from genre_dist.catalogue.sample_rows import Sample, Unlabelled, images_of
from genre_dist.catalogue.sample_table import SampleTable, open_samples
from genre_dist.catalogue.samples import SampleWriter, image_file
from genre_dist.catalogue.schema_file import MOST_CLASSES
from genre_dist.catalogue.taking import EMPTY, Taken, check_paths, image_columns, take
from genre_dist.lock import one_writer
from genre_dist.printable import printable
from genre_dist.progress import progress_bar
from genre_dist.sample_ids import LONGEST_KEY, member_key, number_of_id
from genre_dist.schema import Schema
from genre_dist.splits import split_of
from genre_dist.storage import AnyPath

LARGE_GROUP = 0.05
"""A group of --split_by with a larger share of the samples is told: all of it lies in one split."""
GROUPS_TOLD, CLASSES_TOLD = 3, 50
FEW_SAMPLES = 50
"""So many have some in every split, but for groups; of fewer a split may be empty by chance."""


class SampleReport(NamedTuple):
    """Counts of an import."""

    schema: Schema
    """With the classes resolved."""
    samples: int
    having: Counter[str]
    """Field -> samples that have it."""
    labels: Counter[str]
    """Class -> samples."""
    unlabelled: int
    """Samples that were kept without a label."""
    notes: list[str]
    """What is odd about the data set as a whole, a line each."""
    left_out: LeftOut


@dataclasses.dataclass
class Known:
    """What the first reading of a table finds, or the listing of tars."""

    samples: int = 0
    unlabelled: int = 0
    long_ids: int = 0
    labels: Counter[str] = dataclasses.field(default_factory=Counter)
    having: Counter[str] = dataclasses.field(default_factory=Counter)
    groups: Counter[str] = dataclasses.field(default_factory=Counter)
    """Value of split_by -> samples; empty if that is the id."""
    of_key: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """Image field -> key of its file -> the number of the sample's id."""


def import_samples(
    table: Path,
    schema: Schema,
    images: Mapping[str, Sequence[Path]],
    out: Path,
    unlabelled: Unlabelled = "leave_out",
    overwrite: bool = False,
) -> SampleReport:
    """Make a catalogue in `out` from a table and from images, as `schema` declares them.

    `table` is .parquet, .csv (UTF-8, with a heading) or .jsonl. `images` has the folders (searched recursively) and
    tars of each image field; a sample's image is the best first one that is named as the sample's id or as its cell in
    the field's column. A schema without classes gets those of the table, by name. `overwrite` replaces a catalogue.

    Raises ValueError naming the file, column, row or field that cannot be read. All but a broken tar and an image field
    without any image is found before anything is written; these leave no samples.parquet.
    """
    check_paths(table, [path for paths in images.values() for path in paths], out)
    for field in images_of(schema):
        if not images.get(field.name):
            raise ValueError(f"the image field {field.name} has no files; give --posters {field.name}=FOLDER_OR_TAR")
    with one_writer(out), progress_bar() as progress:
        if holds_catalogue(out) and not overwrite:
            raise ValueError(f"{out} already holds a catalogue; give another --out, or --overwrite to replace it")
        left_out = LeftOut()
        opened = open_samples(table, schema, unlabelled)
        known = _read(opened, progress, left_out)
        schema = resolved(schema, table, known)
        if overwrite:
            remove_catalogue(out)
        remove_partial_files(out)
        taken = {
            field.name: _take(field.name, schema, images[field.name], known, out, progress, left_out)
            for field in images_of(schema)
        }
        again = SampleTable(table, dataclasses.replace(opened.rows, schema=schema)).samples(LeftOut())
        with SampleWriter(out, schema) as writer:
            for sample in progress.track(again, description="samples", total=known.samples):
                writer.add(_row(sample, taken, known, left_out))
        return SampleReport(
            schema, known.samples, known.having, known.labels, known.unlabelled, notes(schema, known), left_out
        )


def _read(table: SampleTable, progress: Any, left_out: LeftOut) -> Known:
    """Read the table once. Raises ValueError for a wrong row, and for labels that are too many to be classes."""
    schema, known = table.schema, Known(of_key={field.name: {} for field in images_of(table.schema)})
    shared: dict[str, set[str]] = {name: set() for name in known.of_key}
    for sample in progress.track(table.samples(left_out), description="ids"):
        known.samples += 1
        known.unlabelled += not sample.labels
        known.labels.update(sample.labels)
        known.having.update(name for name in sample.values if sample.has(name))
        known.long_ids += _is_long(sample.id)
        if schema.split_by != schema.id:
            known.groups[sample.split_by] += 1
        check_classes(schema, table.path, known)
        for name, key in sample.keys.items():
            if key and known.of_key[name].setdefault(key, number := number_of_id(sample.id)) != number:
                shared[name].add(key)
                _tell_shared(name, key, left_out)
    for name, keys in shared.items():
        for key in keys:
            _tell_shared(name, key, left_out)
            del known.of_key[name][key]
    return known


def _tell_shared(field: str, key: str, left_out: LeftOut) -> None:
    """Two samples of one file get none: it could be the wrong one."""
    left_out.add(f"samples that name their file of {field} as another does, without one", key)


def _is_long(id: str) -> bool:
    try:
        return not member_key(id)
    except ValueError:
        return True


def check_classes(schema: Schema, path: AnyPath, known: Known) -> None:
    """Raises ValueError for labels that are too many to be classes."""
    if len(known.labels) > MOST_CLASSES:
        raise ValueError(
            f"{path}: more than {MOST_CLASSES:,} labels; is {schema.labels.column!r} the column of --labels?"
        )


def resolved(schema: Schema, path: AnyPath, known: Known) -> Schema:
    """The schema with its classes.

    Raises ValueError for one or too many of them, for a field that no row has, and for groups that leave a split empty.
    """
    if not known.samples:
        raise ValueError(f"{path}: no sample with a label in the column {schema.labels.column!r}; check --labels")
    check_classes(schema, path, known)
    classes = schema.labels.classes or tuple(sorted(known.labels))
    if len(classes) < 2:
        raise ValueError(
            f"{path}: one class only ({', '.join(classes) or 'none'}) in the column {schema.labels.column!r}: there is "
            "nothing to learn; check --labels and --classes"
        )
    for field in schema.fields:
        if field.kind != "image" and not known.having[field.name]:
            columns = " and ".join(map(repr, field.columns))
            raise ValueError(f"{path}: no row has the field {field.name} (column {columns}); fill it, or leave it out")
    _check_groups(path, schema.split_by, known)
    return dataclasses.replace(schema, labels=dataclasses.replace(schema.labels, classes=classes))


def _check_groups(path: AnyPath, column: str, known: Known) -> None:
    """Raise ValueError if groups leave a split empty."""
    taken = {split_of(number_of_id(group)) for group in known.groups}
    if known.groups and known.samples >= FEW_SAMPLES and (empty := {"train", "val", "test"} - taken):
        group, count = known.groups.most_common(1)[0]
        raise ValueError(
            f"{path}: no sample would lie in {' and '.join(sorted(empty))}: a group of {column!r} lies in one split, "
            f"and of {len(known.groups):,} the largest, {printable(group)[:60]!r}, has {count / known.samples:.0%} of "
            "all samples; give --split_by a column of more and smaller groups, or add rows of other groups"
        )


def _take(
    field: str, schema: Schema, places: Sequence[Path], known: Known, out: Path, progress: Any, left_out: LeftOut
) -> dict[int, Taken]:
    """Take a field's images into the catalogue; the number of each sample's id -> its image.

    Raises ValueError if there is none for any sample.
    """
    of_key, taken = known.of_key[field], dict[int, Taken]()
    for path in places:
        found = find_posters(path, of_key, left_out, declared=schema)
        for image in progress.track(found, description=f"{field}: {path.name}"):
            number = of_key[image.key]
            if better := take(image, image_file(out, field, number), taken.get(number)):
                taken[number] = better
            else:
                left_out.add(further_files(schema), image.where)
    if not any(image.size for image in taken.values()):
        listed = ", ".join(str(path) for path in places)
        example = f", such as {printable(next(iter(of_key)))[:60]}.jpg" if of_key else ""
        raise ValueError(
            f"no row has the field {field}: none of the files in {listed} is named as a sample{example}; check "
            "--posters and --poster_key"
        )
    return taken


def _row(sample: Sample, taken: dict[str, dict[int, Taken]], known: Known, left_out: LeftOut) -> dict[str, Any]:
    """A row of the catalogue."""
    row = {"id": sample.id, "split_by": sample.split_by, "labels": list(sample.labels), **sample.values}
    for field, images in taken.items():
        columns = image_columns(images.get(number_of_id(sample.id)), f"{field}:")
        if (status := columns[f"{field}:status"]) == EMPTY:
            left_out.add(f"images {EMPTY}", sample.id)
        known.having[field] += status == "ok"
        row |= columns
    return row


def notes(schema: Schema, known: Known) -> list[str]:
    """Lines on large groups, on classes without a sample, and on ids too long for tars."""
    large = [
        f"note: the group {printable(group)[:60]} of {schema.split_by} has {count / known.samples:.0%} of all samples "
        f"({count:,}), which lie in one split"
        for group, count in known.groups.most_common(GROUPS_TOLD + 1)
        if count > max(1, LARGE_GROUP * known.samples)
    ]
    notes = [*large[:GROUPS_TOLD], *["note: and further large groups"][: len(large) > GROUPS_TOLD]]
    if none := [name for name in schema.labels.classes if not known.labels[name]]:
        listed = ", ".join(none[:5]) + (", ..." if len(none) > 5 else "")
        notes.append(f"note: {len(none):,} classes that no sample has: {listed}")
    if known.long_ids:
        notes.append(
            f"note: {known.long_ids:,} ids are too long to be packed (more than {LONGEST_KEY} bytes as keys in a tar); "
            "import again with shorter ones"
        )
    return notes


def report_lines(report: SampleReport) -> list[str]:
    """An import's counts in words, a line each."""
    schema = report.schema
    lines = [f"{report.having[field.name]:,} with the field {field.name} ({field.kind})" for field in schema.fields]
    counts = [f"{printable(name)} {report.labels[name]:,}" for name in schema.labels.classes]
    more = [f"and {len(counts) - CLASSES_TOLD:,} more"] if len(counts) > CLASSES_TOLD else []
    lines.append(f"{len(counts):,} classes, choose {schema.labels.choose}: {', '.join(counts[:CLASSES_TOLD] + more)}")
    if report.unlabelled:
        lines.append(f"{report.unlabelled:,} samples without a label, kept as having none")
    return [*lines, *report.notes, *report.left_out.lines()]
