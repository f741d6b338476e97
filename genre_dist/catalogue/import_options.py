"""The options of `genre-dist import` that declare a data set, as a schema and its images."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from genre_dist.catalogue.sample_rows import images_of
from genre_dist.catalogue.schema_file import AUTO, classes_named, load_schema
from genre_dist.schema import Field, Labels, Schema

IMAGE, TEXT, NUMBERS = "image", "text", "numbers"
"""Names of the fields that options declare."""
_DECLARING = ("id", "labels", "classes", "choose", "split_by", "text", "numbers")


def declared_schema(options: Namespace) -> Schema | None:
    """The schema of a file or of options; None if there are none, so that the table is one of films.

    Raises ValueError for options that do not go together, and for what is missing.
    """
    given = [f"--{name}" for name in _DECLARING if getattr(options, name) is not None]
    if options.schema is not None:
        if given or options.poster_key is not None:
            raise ValueError(f"--schema says what {(given or ['--poster_key'])[0]} does; give one of them")
        schema = load_schema(options.schema)
    elif given:
        schema = _of_options(options)
    elif options.unlabelled is not None:
        raise ValueError("--unlabelled is for a data set of your own: give --id and --labels, or --schema")
    else:
        return None
    if options.columns:
        raise ValueError("--columns renames the columns of films; a data set of your own names the table's themselves")
    return schema


def _of_options(options: Namespace) -> Schema:
    for name in ("id", "labels"):
        if getattr(options, name) is None:
            raise ValueError(f"a data set of your own needs --{name} COLUMN (or --schema FILE that says all)")
    fields = []
    if options.posters:
        column = () if options.poster_key is None else (options.poster_key,)
        fields.append(Field(name=IMAGE, kind="image", columns=column))
    if options.text:
        fields.append(Field(name=TEXT, kind="text", columns=tuple(options.text)))
    if options.numbers:
        fields.append(Field(name=NUMBERS, kind="numbers", columns=tuple(options.numbers)))
    if not fields:
        raise ValueError("nothing to learn from: give --posters, --text COLUMN or --numbers COLUMN")
    classes = classes_named(options.classes or AUTO, Path(), "--classes")
    return Schema(
        id=options.id,
        split_by=options.split_by or options.id,
        labels=Labels(column=options.labels, classes=classes, choose=options.choose or "many"),
        fields=tuple(fields),
    )


def declared_images(posters: Sequence[Path], schema: Schema) -> dict[str, list[Path]]:
    """The folders and tars of each image field, from `FIELD=PATH`, or `PATH` where there is one such field.

    Raises ValueError for a path whose field is not clear.
    """
    fields = [field.name for field in images_of(schema)]
    images: dict[str, list[Path]] = {name: [] for name in fields}
    for path in map(str, posters):
        name, equals, place = path.partition("=")
        if equals and name in images:
            images[name].append(Path(place))
        elif len(fields) == 1:
            images[fields[0]].append(Path(path))
        elif not fields:
            raise ValueError(f"--posters {path}: the schema has no field of kind image")
        else:
            raise ValueError(f"--posters {path}: whose are these? Give {' '.join(f'{name}=PATH' for name in fields)}")
    return images
